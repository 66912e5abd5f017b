"""The name by which scripts outside this suite read packed slices; the code is in `data/store/`."""

from data.store.store import SliceStore

__all__ = ["SliceStore"]
