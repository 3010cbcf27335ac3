"""What `syncer check` finds: small values with stable names, listed in docs/check.md. Used by every part of it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not fit. *code* is stable; *text* says what it is, for people.

    *inode* (with *name*, an entry of it) or the local block number *block* says whose it is; *paths* are all names
    affected, filled in once the search is over. *name* alone is a file in DATA or an object on the remote; a finding
    without any of them is of the whole.
    *lost* says that bytes are gone for good as far as is known.
    """

    code: str
    text: str
    inode: int | None = None
    name: bytes | None = None
    block: int | None = None
    paths: tuple[bytes, ...] = ()
    lost: bool = False

    @property
    def subject(self) -> tuple[str, int | None, bytes | None, int | None, str]:
        """What makes two findings the same one, seen at two moments."""
        whose = (self.inode, self.block, self.name)
        place = self.text if whose == (None, None, None) else ""
        return self.code, self.inode, self.name, self.block, place
