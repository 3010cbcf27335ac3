"""How the commands write things for people: sizes, durations, and text that cannot upset a terminal."""


def printable(text: str) -> str:
    """*text* on one line, with control characters and bytes that are not UTF-8 spelled out as escapes."""
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python carries a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def size(count: int) -> str:
    """*count* bytes in decimal units with three digits: `999 bytes`, `1.23 MB`, `45.6 GB`."""
    if abs(count) < 1000:
        return "1 byte" if count == 1 else f"{count} bytes"
    value = count / 1000
    units = ["kB", "MB", "GB", "TB", "PB", "EB"]
    while abs(value) >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {units[0]}"


def duration(seconds: float) -> str:
    """*seconds* in at most two units: `4 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = int(seconds)
    for unit, length, lower_unit, lower in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // lower
            return f"{whole // length} {unit}" + (f" {rest} {lower_unit}" if rest else "")
    return f"{whole} s"


def waiting(pending_bytes: int) -> str:
    """The clause that tells how much is not on the remote yet."""
    if not pending_bytes:
        return "0 bytes wait for upload"
    number = f"{pending_bytes} byte" + ("s" if pending_bytes != 1 else "")
    about = f" ({size(pending_bytes)})" if pending_bytes >= 1000 else ""
    return f"{number}{about} wait for upload; they are safe in DATA and go up with the next mount"
