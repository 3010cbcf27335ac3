"""The cutter in plain Python, a byte at a time: what `syncer/native/_scan.c` must find, with nothing made fast.

It is written from the rules at the head of that file, not from its code: every byte is hashed from the start of its
block, and zeros are counted one by one.
"""

WINDOW_BYTES = 64
NORMALIZATION_BITS = 2
GEAR_SEED = int.from_bytes(b"syncer.1", "big")
WORD = (1 << 64) - 1

CUT, HOLE, DATA = 0, 1, 2


def gear_table() -> list[int]:
    """The first 256 numbers of splitmix64 from the seed."""
    table = []
    state = GEAR_SEED
    for _ in range(256):
        state = (state + 0x9E3779B97F4A7C15) & WORD
        mixed = state
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
        table.append(mixed ^ (mixed >> 31))
    return table


GEAR = gear_table()


class PureCutter:
    """The same interface as `syncer.native.Cutter`; parameters are taken as they are."""

    def __init__(self, min_bytes: int, mean_bytes: int, max_bytes: int, zero_bytes: int) -> None:
        self._min_bytes = min_bytes
        self._mean_bytes = mean_bytes
        self._max_bytes = max_bytes
        self._zero_bytes = zero_bytes
        self.reset()

    def reset(self) -> None:
        self.position = 0
        self._hash = 0
        self._zeros = 0
        self._in_hole = False

    def feed(self, data: bytes) -> list[tuple[int, int]]:
        events = []
        for index, byte in enumerate(data):
            if self._in_hole:
                if byte == 0:
                    self.position += 1
                    continue
                events.append((index, DATA))
                self.reset()
            self._swallow(byte)
            if self._zeros == self._zero_bytes:
                events.append((index + 1 - self._zero_bytes, HOLE))
                self._in_hole = True
                self.position = self._zero_bytes
            elif self._ends_block():
                events.append((index + 1, CUT))
                self.reset()
        return events

    def _swallow(self, byte: int) -> None:
        self.position += 1
        self._zeros = self._zeros + 1 if byte == 0 else 0
        self._hash = ((self._hash << 1) + GEAR[byte]) & WORD

    def _ends_block(self) -> bool:
        if self.position < self._min_bytes:
            return False
        mean_bits = self._mean_bytes.bit_length() - 1
        harder = self.position < self._mean_bytes
        bits = mean_bits + NORMALIZATION_BITS if harder else mean_bits - NORMALIZATION_BITS
        return self._hash >> (64 - bits) == 0 or self.position == self._max_bytes
