"""A process that changes files of one folder without end, and logs each call before it is made and after it returned.

    python -m tests.support.logged_work FOLDER LOG SEED

The log lies where no crash reaches it: a line with the operation and its arguments, then a line OK. So whoever comes
after a crash knows all that had returned, and the one operation of which that is not known. It ends with the first
call that fails, or when its standard input does.
"""

import json
import os
import random
import sys
import threading
from pathlib import Path

NAMES = tuple(f"f{number}" for number in range(10))
SIZES = (10, 300, 4096, 20_000, 50_000, 70_000, 200_000, 900_000)
LARGEST_BYTES = 3_000_000
OK = "ok"

Operation = list[str | int]


def bytes_of(seed: int, length: int) -> bytes:
    """What an operation with this seed writes."""
    return random.Random(seed).randbytes(length)


def perform(folder: Path, operation: Operation) -> None:
    """One system call that changes something, with the open(2) it needs. Raises: OSError."""
    kind, *arguments = operation
    match kind, arguments:
        case "create", [str(name)]:
            os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        case "append", [str(name), int(seed), int(length)]:
            _write(folder / name, os.O_APPEND, None, bytes_of(seed, length))
        case "overwrite", [str(name), int(seed), int(length), int(offset)]:
            _write(folder / name, 0, offset, bytes_of(seed, length))
        case "truncate", [str(name), int(length)]:
            os.truncate(folder / name, length)
        case "rename", [str(name), str(other)]:
            os.rename(folder / name, folder / other)
        case "link", [str(name), str(other)]:
            os.link(folder / name, folder / other)
        case "unlink", [str(name)]:
            os.unlink(folder / name)
        case "fsync", [str(name)]:
            _sync(folder / name)
        case "fsync_folder", []:
            _sync(folder)
        case _:
            raise ValueError(f"no such operation: {operation}")


def _write(path: Path, flags: int, offset: int | None, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        count = os.write(descriptor, data) if offset is None else os.pwrite(descriptor, data, offset)
        if count != len(data):
            raise OSError(f"{count} of {len(data)} bytes were taken")
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def choose(folder: Path, chance: random.Random) -> list[Operation]:
    """What to do next: one operation, or a file that takes the place of another as programs save."""
    there = sorted(os.listdir(folder))
    free = [name for name in NAMES if name not in there]
    if not there or (free and chance.random() < 0.15):
        return [["create", chance.choice(free)]]
    name, other = chance.choice(there), chance.choice(NAMES)
    seed, length = chance.randrange(1 << 30), chance.choice(SIZES)
    size = (folder / name).stat().st_size
    kind = chance.choices(
        ("append", "overwrite", "truncate", "rename", "link", "unlink", "fsync", "fsync_folder", "save"),
        (30, 15, 6, 6, 4, 5, 12, 4, 8),
    )[0]
    if kind == "append" and size < LARGEST_BYTES:
        return [["append", name, seed, length]]
    if kind == "overwrite":
        return [["overwrite", name, seed, length, chance.randrange(size + 5000) if size < LARGEST_BYTES else 0]]
    if kind == "truncate" or kind == "append":
        return [["truncate", name, chance.choice((0, size // 2, min(size + 1000, LARGEST_BYTES)))]]
    if kind == "rename" and name != other:
        return [["rename", name, other]]
    if kind == "link" and free:
        return [["link", name, chance.choice(free)]]
    if kind == "unlink":
        return [["unlink", name]]
    if kind == "save" and free and name != free[0]:
        saved: list[Operation] = [["create", free[0]], ["append", free[0], seed, length], ["fsync", free[0]]]
        saved.append(["rename", free[0], name])
        return [*saved, ["fsync_folder"]] if chance.random() < 0.5 else saved
    return [["fsync_folder"]] if kind == "fsync_folder" else [["fsync", name]]


def main(folder: Path, log: Path, seed: str) -> None:
    chance = random.Random(seed)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    while True:
        for operation in choose(folder, chance):
            os.write(descriptor, f"{json.dumps(operation)}\n".encode())
            perform(folder, operation)
            os.write(descriptor, f"{OK}\n".encode())


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(7)
