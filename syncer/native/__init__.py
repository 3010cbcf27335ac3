"""The C extension: finding cut points and zero runs. There is no slow path: without it nothing starts."""

try:
    from syncer.native._scan import CUT, DATA, HOLE, Cutter
except ImportError as error:
    raise ImportError(
        "syncer's native extension is not built for this Python: start syncer through scripts/syncer, "
        "or run `pip install .` in its folder"
    ) from error

__all__ = ["CUT", "DATA", "HOLE", "Cutter"]
