"""The annotated subjects of a split, as packed by step 2: who they are, and the label maps they are scored against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.identity import is_unchanged
from data.layouts.subjects import SubjectFiles
from data.scans.grid import Grid
from data.scans.subject import SubjectReader
from data.splits import SETS, Split
from data.store.store import SliceStore
from utils.checks import InputError
from utils.config.data import Wanted
from utils.runs import changed_since_step_2, lacks


@dataclass(frozen=True)
class Annotated:
    """Subjects of one split that have a label map and are packed.

    Attributes:
        store: Their packed slices.
        split: The split.
        files: Subject -> `SubjectFiles`, of the whole dataset.
        wanted: How they are read.
    """

    store: SliceStore
    split: Split
    files: Mapping[str, SubjectFiles]
    wanted: Wanted

    def of(self, part: str) -> list[str]:
        """List the annotated subjects of `train`, `val` or `test`, in the order of the split."""
        return [subject for subject in getattr(self.split, part) if self._is_usable(subject)]

    def _is_usable(self, subject):
        return subject in self.files and bool(self.files[subject].label) and subject in self.store.subjects

    def absent(self) -> Iterator[str]:
        """Yield one line for each subject that should be packed and is not, or vice versa."""
        for subject in (name for part in SETS for name in getattr(self.split, part)):
            files, is_packed = self.files.get(subject), subject in self.store.subjects
            if files and files.label and not is_packed:
                yield lacks(self.store.path, subject)
            elif files and is_packed and not files.label:
                yield f"{subject}: no longer has the label map that step 2 packed; put it back"

    def read_reference(self, subject: str) -> np.ndarray:
        """Read the label map of a subject as class indices on the grid of its scans, `(X, Y, Z)` uint8.

        Raises:
            InputError: The label map cannot be used, or has changed since step 2 packed it.
        """
        grid, files = self.store.grid(subject), self.files[subject]
        classes = SubjectReader(files, self.wanted, grid=Grid(None, grid.shape, grid.affine)).label()
        noted = self.store.hashes.get(subject, {})
        if "label" in noted and not is_unchanged(classes, grid.affine, noted["label"]):
            raise InputError(changed_since_step_2(subject, files.label))
        return classes


def open_annotated(
    path: Path,
    split: Split,
    files: Mapping[str, SubjectFiles],
    *,
    wanted: Wanted,
    config_hash: str,
    seed: int,
) -> Annotated:
    """Open the packed slices of the annotated subjects of a split.

    Args:
        path: The store that step 2 wrote.
        split: The split it must hold.
        files: As in `Annotated`.
        wanted: As in `Annotated`.
        config_hash: Hash of the settings that the store must have been made with.
        seed: Seed that the store must have been made with.

    Raises:
        InputError: The file is missing or damaged, or was made with other settings, seed, split or labels.
    """
    store = SliceStore(path)
    store.check_hash(config_hash)
    store.check_origin(split=split.to_dict(), seed=seed, labels=list(wanted.labels))
    return Annotated(store, split, files, wanted)
