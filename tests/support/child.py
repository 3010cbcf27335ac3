"""Another process in the tests: Python code that talks with the test line by line."""

import contextlib
import subprocess
import sys
from typing import Self

WITHIN_S = 60.0


class Child:
    """Runs *code* with *arguments* in sys.argv. A context manager: it does not outlive the test.

    The code prints lines, which `says` returns one by one, and reads from sys.stdin the lines that `tell` sends.
    """

    def __init__(self, code: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    def says(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def tell(self, line: object = "") -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def ask(self, line: object) -> str:
        """Tell it something; what it answers."""
        self.tell(line)
        return self.says()

    def ends(self) -> int:
        """Let it come to its end; the exit status, negative where a signal ended it."""
        assert self.process.stdin
        self.process.stdin.close()
        return self.process.wait(WITHIN_S)
