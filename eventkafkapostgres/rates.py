"""Rates, read and written for people.

>>> parse_rate("80Mbit/s")
10000000.0
>>> format_rate(3932801.7)
'3.93 MB/s'
"""

from __future__ import annotations

import math
import re

RATE = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3}){2,}|\d+(?:\.\d*|,\d+)?(?:e\+?\d+)?|\.\d+)\s*"
    r"(?P<prefix>[kmgt]?i|[kmgt]?)(?P<unit>bits?|bytes?|b|)(?P<per>ps|/s(?:ec(?:ond)?)?|)",
    re.ASCII | re.IGNORECASE,
)
POWERS = {"": 1.0} | {f"{p}{i}": base**n for i, base in (("", 1e3), ("i", 1024.0)) for n, p in enumerate("kmgt", 1)}


def parse_rate(text: str) -> float:
    """Bytes per second from '1000000', '1MB/s', '80Mbit/s', '80Mbps' (bits) or '1MiB/s'. ValueError for anything else.

    The case of prefix and bit doesn't matter, nor that "per second" is left out. A b that may be either is refused.
    """
    text = text.strip()
    if "%" in text:
        raise ValueError(f"{text!r}: a link's speed is not always known; write a rate such as 1MB/s or 80Mbit/s")
    if re.fullmatch(r"\d{1,3},\d{3}\D*", text, re.ASCII):
        raise ValueError(f"{text!r} is ambiguous: {text.replace(',', '')} or {text.replace(',', '.')}?")
    found = RATE.fullmatch(text)
    if not found or found["prefix"].lower() not in POWERS or (found["per"] and not found["unit"]):
        raise ValueError(f"{text!r} is not a rate: write bytes per second as 1000000, 1MB/s, 80Mbit/s or 1MiB/s")
    number, prefix, unit, per = found.group("number", "prefix", "unit", "per")
    plain_number = number.replace(",", "." if number.count(",") == 1 else "")
    rate = float(plain_number) * POWERS[prefix.lower()]
    if rate == math.inf:
        raise ValueError(f"{text[:20]!r}... is more than any rate")
    if unit.lower().startswith("bit") or (unit, per) == ("b", "ps"):
        return rate / 8
    if unit.lower().startswith("byte") or (unit == "B" and per != "PS") or not (prefix or unit):
        return rate
    in_bytes = format_rate(rate / 8).replace(".00 ", " ")
    raise ValueError(f"{text!r} is ambiguous: {number}{prefix}bit/s ({in_bytes}) or {number}{prefix}B/s?")


def format_rate(bytes_per_second: float, decimals: int = 2) -> str:
    """'3.93 MB/s': three significant digits or so, for people."""
    for unit in ("B/s", "kB/s", "MB/s", "GB/s"):
        if bytes_per_second < 1000 - 0.5 * 10**-decimals or unit == "GB/s":
            break
        bytes_per_second /= 1000
    return f"{bytes_per_second:.{decimals}f} {unit}"


def format_rates_apart(rate: float, limit: float) -> tuple[str, str]:
    """Both rates for people, with as many decimals as it takes to see which is the higher one."""
    for decimals in range(2, 12):
        rate_text, limit_text = format_rate(rate, decimals), format_rate(limit, decimals)
        if rate_text != limit_text:
            return rate_text, limit_text
    return (format_rate(rate), format_rate(limit)) if rate == limit else (f"{rate!r} B/s", f"{limit!r} B/s")
