"""What a folder looks like, to compare before and after."""

from pathlib import Path


def picture(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything below *folder*, and its own mode. Nothing in it may be mounted."""
    entries = {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }
    return {**entries, ".": (folder.stat().st_mode, b"")}
