import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventkafkapostgres.rates import format_rate, format_rates_apart, parse_rate


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [
        ("1000000", 1_000_000),
        ("0", 0),
        ("0.5", 0.5),
        (" 1MB/s ", 1_000_000),
        ("1 MB/s", 1_000_000),
        ("1.5kB/s", 1500),
        ("1KB/s", 1000),
        ("7B/s", 7),
        ("2GB/s", 2e9),
        ("1TB/s", 1e12),
        ("80Mbit/s", 10_000_000),
        ("8bit/s", 1),
        ("1Gbit/s", 125_000_000),
        ("1MiB/s", 1 << 20),
        ("1KiB/s", 1 << 10),
        ("8Mibit/s", 1 << 20),
        # as people type them
        ("80Mbps", 10_000_000),
        ("80mbps", 10_000_000),
        ("1 gbps", 125_000_000),
        ("1 Gbps", 125_000_000),
        ("8bps", 1),
        ("100mbit", 12_500_000),
        ("80mbit/s", 10_000_000),
        ("1MBit/s", 125_000),
        ("8 Mbits/sec", 1_000_000),
        ("8MBIT/S", 1_000_000),
        ("8mibit", 1 << 20),
        ("10MB", 10_000_000),
        ("10MiB", 10 << 20),
        ("1mB/s", 1_000_000),
        ("1MB/sec", 1_000_000),
        ("1MB/second", 1_000_000),
        ("1MBps", 1_000_000),
        ("2mbytes/s", 2_000_000),
        ("2 byte/s", 2),
        ("1e6", 1_000_000),
        ("1E6", 1_000_000),
        ("1.5e+6", 1_500_000),
        ("1e3kB/s", 1_000_000),
        ("1,000,000", 1_000_000),
        ("1,000,000,000 B/s", 1_000_000_000),
        ("1,5MB/s", 1_500_000),
        (".5MB/s", 500_000),
        ("5.MB/s", 5_000_000),
    ],
)
def test_a_rate_is_read_in_bytes_per_second(text, bytes_per_second):
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("80Mb/s", "80Mbit/s (10 MB/s) or 80MB/s?"),
        ("1Gb/s", "1Gbit/s (125 MB/s) or 1GB/s?"),
        ("1gb", "1gbit/s (125 MB/s) or 1gB/s?"),
        ("10M", "10Mbit/s (1.25 MB/s) or 10MB/s?"),
        ("10Mi", "10Mibit/s (1.31 MB/s) or 10MiB/s?"),
        ("80 MBPS", "80Mbit/s (10 MB/s) or 80MB/s?"),
        ("100b", "100bit/s (12.50 B/s) or 100B/s?"),
        ("1,500kB/s", "1500kB/s or 1.500kB/s?"),
        ("1,000", "1000 or 1.000?"),
    ],
)
def test_an_ambiguous_rate_is_refused_with_its_two_readings_and_both_are_rates(text, readings):
    with pytest.raises(ValueError, match="is ambiguous") as caught:
        parse_rate(text)
    assert str(caught.value) == f"{text!r} is ambiguous: {readings}"
    bits, others = readings.rstrip("?").split(" or ")
    assert parse_rate(bits.partition(" (")[0]) != parse_rate(others)


@pytest.mark.parametrize(
    "text",
    ["", "fast", "MB/s", "1 M B/s", "1iB/s", "1i", "1MB/h", "10/s", "10ps", "10M/s", "-1", "+1", "1e-6", "1e", "e6",
     ".", ",5", "1,00,000", "1.000.000", "1,000,000,5", "nan", "inf", "0x10", "\u0661", "1MB/s\x00", "1_000", "1PB/s",
     "1MB/s/s", "1kMB/s"],
)  # fmt: skip
def test_what_is_no_rate_is_refused_with_the_forms_that_are(text):
    with pytest.raises(
        ValueError, match=r"is not a rate: write bytes per second as 1000000, 1MB/s, 80Mbit/s or 1MiB/s"
    ):
        parse_rate(text)


@pytest.mark.parametrize("text", ["80%", "80 %", "80% of 1Gbit/s"])
def test_a_percentage_is_refused_with_the_reason(text):
    with pytest.raises(ValueError, match="a link's speed is not always known; write a rate such as 1MB/s or 80Mbit/s"):
        parse_rate(text)


@pytest.mark.parametrize("text", ["9" * 400, "1e400", "1e308TB/s"])
def test_a_rate_beyond_all_numbers_is_refused(text):
    with pytest.raises(ValueError, match="is more than any rate"):
        parse_rate(text)


@given(st.text(alphabet="0159.,eEkKmMgGiIbBtTsSpP/ %x\n", max_size=12) | st.text())
def test_whatever_is_typed_is_a_rate_or_one_line(text):
    try:
        answer = parse_rate(text)
    except ValueError as error:
        answer = str(error)
    assert "\n" not in answer if isinstance(answer, str) else 0 <= answer < math.inf


@pytest.mark.parametrize(
    ("bytes_per_second", "text"),
    [
        (0, "0.00 B/s"),
        (999, "999.00 B/s"),
        (999.994, "999.99 B/s"),
        (999.995, "1.00 kB/s"),
        (1000, "1.00 kB/s"),
        (3_932_801.7, "3.93 MB/s"),
        (999_999_999, "1.00 GB/s"),
        (12.5e12, "12500.00 GB/s"),
    ],
)
def test_a_rate_is_written_for_people(bytes_per_second, text):
    assert format_rate(bytes_per_second) == text


@pytest.mark.parametrize(
    ("rate", "limit", "texts"),
    [
        (3_932_801.7, 1e6, ("3.93 MB/s", "1.00 MB/s")),
        (1_000_000.04, 1e6, ("1.00000004 MB/s", "1.00000000 MB/s")),
        (1_004_000, 1e6, ("1.004 MB/s", "1.000 MB/s")),
        (1_000_000, 999_999, ("1.000 MB/s", "999.999 kB/s")),  # with two decimals both are 1.00 MB/s
        (1e6, 1e6, ("1.00 MB/s", "1.00 MB/s")),
        (0.001, 0, ("0.001 B/s", "0.000 B/s")),
        (math.nextafter(1e6, 2e6), 1e6, ("1000000.0000000001 B/s", "1000000.0 B/s")),
    ],
)
def test_two_rates_that_differ_are_written_so_that_they_do(rate, limit, texts):
    assert format_rates_apart(rate, limit) == texts


@given(*[st.floats(0, 1e15)] * 2)
def test_the_higher_rate_is_written_as_the_higher_one(rate, limit):
    texts = format_rates_apart(rate, limit)
    units = {"B/s": 1, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9}
    read = [float(number) * units[unit] for number, unit in map(str.split, texts)]
    assert (texts[0] == texts[1]) == (rate == limit)
    assert (read[0] > read[1]) == (rate > limit)
