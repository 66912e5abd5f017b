"""The paths of everything in a work dir."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from utils.checks import InputError

METRICS, MODEL, WEIGHTS, PREDICTIONS = "metrics.json", "model.json", "weights.npz", "predictions"  # of a cell


@dataclass(frozen=True)
class WorkDir:
    """The paths of one split, and those that all splits share.

    Attributes:
        root: The work dir.
        split: Name of a fold, such as `fold0`; empty without cross-validation.
    """

    root: Path
    split: str = ""

    def of(self, split: str) -> "WorkDir":
        """The same work dir, for another split."""
        return dataclasses.replace(self, split=split)

    @property
    def folder(self) -> Path:
        """Folder of the results of this split."""
        return Path(self.root) / self.split

    def name_of(self, path: Path) -> str:
        """Path relative to the work dir, for messages."""
        return Path(path).relative_to(self.root).as_posix()

    # Step 1

    def maps(self, space: str | None = None) -> Path:
        """Folder of the constraint maps of a contrast space; None: the default one."""
        return Path(self.root) / "constraint_maps" / (space or "")

    def map_of(self, subject: str, space: str | None = None) -> Path:
        """The constraint map of a subject."""
        return self.maps(space) / f"{subject}.nii.gz"

    def map_pictures(self, space: str | None = None) -> Path:
        """Folder of the pictures of the constraint maps, for quality control."""
        return self.maps(space) / "qc"

    def map_picture(self, subject: str, space: str | None = None) -> Path:
        """The picture of the constraint map of a subject."""
        return self.map_pictures(space) / f"{subject}.png"

    def map_summary(self, space: str | None = None) -> Path:
        """The table of maps, their settings and the files they were made from."""
        return self.maps(space) / "summary.csv"

    # Step 2

    def store(self, part: str) -> Path:
        """Packed slices: `pretrain_train`, `pretrain_val` or `annotated`."""
        return self.folder / "h5" / f"{part}.h5"

    @property
    def volumes(self) -> Path:
        """Packed slices of every subject, for synthesis; one file for all splits."""
        return Path(self.root) / "h5" / "volumes.h5"

    def splits_with(self, part: str) -> "list[WorkDir]":
        """The splits that have a store of this part, in numerical order.

        Raises:
            InputError: No split has one.
        """
        splits = ["", *(folder.name for folder in Path(self.root).glob("fold*"))]
        found = [self.of(split) for split in splits if self.of(split).store(part).exists()]
        if not found:
            raise InputError(f"{self.root}: no h5/{part}.h5; run generate_h5_pretraining.py first")
        return sorted(found, key=lambda work: work.number)  # fold10 comes after fold2

    @property
    def number(self) -> int:
        """Number of the fold; -1 without cross-validation."""
        found = re.fullmatch(r"fold(\d+)", self.split)
        return int(found[1]) if found else -1

    # Step 3

    def stage(self, name: str) -> Path:
        """Folder of a stage of pretraining."""
        return self.folder / "pretraining" / name

    def stage_weights(self, name: str) -> Path:
        """Weights of a stage of pretraining."""
        return self.stage(name) / WEIGHTS

    # Step 4

    def cell(self, *names: str, n: int | str, repeat: int | str) -> Path:
        """Folder of a cell of step 4.

        Args:
            *names: `finetuning`, contrasts, init; `synthesis`, init; or `trials`, trial, contrasts, init.
            n: Number of annotated subjects, written with at least two digits.
            repeat: Number of the draw.
        """
        return self.folder.joinpath(*names, f"n{n:0>2}", f"r{repeat}")

    @property
    def trials(self) -> Path:
        """Folder of the trials and their table."""
        return Path(self.root) / "trials"

    # Step 5 and additional measurements

    @property
    def report(self) -> Path:
        """Folder of the tables, figures and page."""
        return Path(self.root) / "report"
