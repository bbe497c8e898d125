"""A /sys/class/net of our own, for the interfaces that a test's machine hasn't got."""

from collections.abc import Iterable
from pathlib import Path

ETHERNET, LOOPBACK, TUNNEL = 1, 772, 65534


def add_interface(
    sys_class_net: Path,
    name: str,
    device: str = "",
    *,
    operstate: str = "up",
    kind: int = ETHERNET,
    master: str = "",
    uppers: Iterable[str] = (),
) -> None:
    """An interface as Linux shows it: X is a link into /sys/devices, and so are its device and its master."""
    devices = sys_class_net.parent.parent / "devices"
    parent = devices / (device or "virtual")
    folder = parent / "net" / name
    folder.mkdir(parents=True)
    (folder / "operstate").write_text(f"{operstate}\n")
    (folder / "type").write_text(f"{kind}\n")
    sys_class_net.mkdir(parents=True, exist_ok=True)
    (sys_class_net / name).symlink_to(folder)
    if device:
        (folder / "device").symlink_to(parent)
    if master:
        (folder / "master").symlink_to(sys_class_net / master)
    for upper in {*uppers, master} - {""}:
        (folder / f"upper_{upper}").symlink_to(sys_class_net / upper)
