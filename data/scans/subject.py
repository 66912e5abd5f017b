"""The files of one subject on one grid: each is read once, checked, resampled and bias-corrected if requested."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.layouts.subjects import SubjectFiles, channel_names, file_of_channel, series_length
from data.scans.grid import Grid, grid_problems, share_covered
from data.scans.labels import classes_of, map_problems, mask_problems
from data.scans.nifti import AGAIN, Image, read_image
from data.scans.scan import grid_of_scan, hash_of_file, problems_of_volumes, reader_of
from utils.checks import InputError
from utils.config.data import Wanted

MAP_GRID = "a constraint map lies on the grid of its scans"


class SubjectReader:
    """Reads the files of one subject.

    The grid is determined once, and a file is read when it is requested. Voxels are kept in memory only on request, so
    that a step needs memory for one subject, however many there are.

    Args:
        files: The files.
        wanted: What the config or model says about them: contrasts, labels, ignored label values.
        names: Contrasts or channels to read, in this order; a 4D series stands for all of its volumes. None: all.
        grid: The grid of earlier results from these files; None: that of `files.resample_to`, or of the first
            contrast.
        keeps: Whether contrasts and mask stay in memory, for a subject from which several things are made.
    """

    def __init__(
        self,
        files: SubjectFiles,
        wanted: Wanted,
        names: Iterable[str] | None = None,
        grid: Grid | None = None,
        keeps: bool = False,
    ):
        self.files, self.subject, self.wanted = files, files.subject, wanted
        self.channels = channel_names(wanted.contrasts, names)
        # Without the contrast to resample to, for instance if a model needs only another, a subject keeps its own grid.
        self.is_resampled = files.resample_to in files.contrasts
        self._grid = grid
        self._headers: dict[Path, Any] = {}
        self._digests: dict[Path, str | None] = {}
        self._keeps = keeps
        self._kept: dict[str, Image] = {}
        self._kept_mask: np.ndarray | None = None

    @property
    def grid(self) -> Grid:
        """The grid of everything that is read, from a header if no contrast has been read yet.

        Raises:
            InputError: The header cannot be read.
        """
        if self._grid is None:
            name = self.files.resample_to if self.is_resampled else None
            path = self.files.contrasts[name or self._files_of(self.channels[:1])[0]]
            self._grid = grid_of_scan(path, self.subject)
        return self._grid

    def volume(self, names: Iterable[str] | None = None) -> np.ndarray:
        """Read contrasts into a common array.

        Args:
            names: Contrasts or channels, in this order; None: those of the reader.

        Returns:
            `(X, Y, Z, C)` float32.

        Raises:
            InputError: One line for each file that cannot be used.
        """
        channels = self.channels if names is None else channel_names(self.wanted.contrasts, names)
        sources = [file_of_channel(self.wanted.contrasts, channel) for channel in channels]
        volume, problems = None, []
        self._grid = self.grid if self.is_resampled else self._grid
        for name, image, found in self._contrasts([name for name, _ in sources]):
            problems += found
            if image is None or found:
                continue
            if name not in self._kept and (changes := self._changes(name, image)):
                from data.scans.resampling import prepared  # SimpleITK is slow to import

                image = Image(prepared(image.values, image.affine, *changes), self.grid.affine)
            if self._keeps:
                self._kept[name] = image
            if volume is None:
                # Channels are contiguous in memory, because most work processes one at a time.
                volume = np.moveaxis(np.empty((len(channels), *self.grid.shape), np.float32), 0, -1)
            for channel, (source, number) in enumerate(sources):
                if source == name:
                    volume[..., channel] = image.values if number is None else image.values[..., number]
        if problems or volume is None:
            raise InputError(problems)
        return volume

    def label(self) -> np.ndarray:
        """Read the label map as class indices.

        Returns:
            `(X, Y, Z)` uint8, 0 for background; classes are numbered from 1 in the order of `wanted.labels`.

        Raises:
            InputError: The file cannot be used, holds a value that no class names, or no labelled voxel (if
                `files.empty_labels` is `"refuse"`).
        """
        classes, problems = self.checked_label(self.grid)
        if problems or classes is None:
            raise InputError(problems)
        return classes

    def mask(self) -> np.ndarray | None:
        """Read the foreground mask, `(X, Y, Z)` bool (two values, one of them 0), or None if there is none."""
        if self.files.mask is None or self._kept_mask is not None:
            return self._kept_mask
        mask, problems = self.checked_mask(self.grid)
        if problems:
            raise InputError(problems)
        self._kept_mask = mask if self._keeps else None
        return mask

    def constraint_map(self, path: Path, clusters: int) -> np.ndarray:
        """Read the constraint map that step 1 made for the subject.

        Args:
            path: The file of the map.
            clusters: Largest class that may occur.

        Returns:
            `(X, Y, Z)`, 0 outside the foreground, classes from 1; the integer type on disk.

        Raises:
            InputError: The file is missing or unreadable, lies on another grid, or is not a map of `clusters` classes.
        """
        if not path.is_file():
            raise InputError(f"{self.subject}: no constraint map '{path}'; run generate_constraint_maps.py first")
        image, problems = read_image(path, self.subject)
        if image is not None:
            problems = grid_problems(self.subject, path, image, self.grid._replace(path=None), MAP_GRID)
            problems = problems or map_problems(f"{self.subject}: '{path}'", image.values, clusters)
        if image is None or problems:
            again = "make it again: generate_constraint_maps.py --overwrite"
            raise InputError([f"{line.removesuffix(AGAIN).removesuffix('; ')}; {again}" for line in problems])
        return image.values

    def problems(
        self, *, of_label: bool = True, judge: Callable[[str, np.ndarray], list[str]] | None = None
    ) -> list[str]:
        """Check every file by reading it once, one file in memory at a time.

        Args:
            of_label: Whether to check the label map too, if there is one.
            judge: Further check, called with the file name and the voxels of each sound contrast; returns lines.

        Returns:
            One line per problem: subject, file, what was found, what to do. Empty for a sound subject.
        """
        names, problems = self._files_of(self.channels), list[str]()
        try:
            self._grid = self.grid if self.is_resampled else self._grid
        except InputError as error:  # reported here unless the same file is read below, which tells more
            problems += error.lines if self.files.resample_to not in names else []
        for name, image, found in self._contrasts(names):
            where = f"{self.subject}: '{self.files.contrasts.get(name)}'"
            problems += found or (judge(where, image.values) if judge and image else [])
            image = None  # release it before the next one is read
        if self.files.mask is not None:
            problems += self.checked_mask(self._grid)[1]
        if of_label and self.wanted.labels and self.files.label is not None:
            problems += self.checked_label(self._grid)[1]
        return problems

    def note(self, names: Iterable[str] | None = None, others: Mapping[str, Path] | None = None) -> str:
        """Describe the files from which something is made, such as `t1=0123456789abcdef mask=...`.

        Args:
            names: Contrasts or channels; the one whose grid they are resampled to, and the mask, are included. None:
                those of the reader.
            others: Name -> path of other files that were read, such as the label map.
        """
        channels = self.channels if names is None else channel_names(self.wanted.contrasts, names)
        reference = [self.files.resample_to] if self.files.resample_to else []
        paths = {name: self.files.contrasts[name] for name in dict.fromkeys([*self._files_of(channels), *reference])}
        paths |= {"mask": self.files.mask} if self.files.mask else {}
        return " ".join(f"{name}={self.digest(path)}" for name, path in (paths | dict(others or {})).items())

    def note_of_all(self) -> str:
        """Describe all files of the subject that hold contrasts, label or mask."""
        return self.note(others={"label": self.files.label} if self.files.label else None)

    def digest(self, path: Path) -> str:
        """Return the hash of a file's bytes, 16 hexadecimal digits; if it was read, of the bytes that were read."""
        return self._digests.get(path) or hash_of_file(path)

    def header(self, path: Path) -> Any:
        """Return the NIfTI header of a file that was read; None if it was not read, or is of another kind."""
        return self._headers.get(path)

    def checked_label(self, grid: Grid | None) -> tuple[np.ndarray | None, list[str]]:
        """Return the result of `label`, or None, and a line for each problem; `grid` None: nothing to compare with."""
        path: Any = self.files.label
        image, problems = reader_of(path)(path, self.subject)
        self._noted(path, image)
        if image is None:
            return None, problems
        if len(image.shape) != 3:
            return None, [f"{self.subject}: '{path}' is {image.shape}, expected 3 axes; a label map is one 3D volume"]
        classes, problems = classes_of(self.files, image.values, self.wanted)
        has_no_label, (classes, found) = not classes.any(), self._on_grid(path, classes, image.affine, grid)
        problems = [*found, *problems]
        if not problems and has_no_label and self.files.empty_labels == "refuse":
            cure = (
                "remove the file to use the subject as unlabelled, or set data.empty_labels: allow if all is background"
            )
            problems.append(f"{self.subject}: '{path}' has no labelled voxel; {cure}")
        elif not problems and not has_no_label and not classes.any():
            where = "on the grid of the scans; correct its affine"
            problems.append(f"{self.subject}: '{path}' has no labelled voxel {where}")
        return classes, problems

    def checked_mask(self, grid: Grid | None) -> tuple[np.ndarray | None, list[str]]:
        """Return the result of `mask`, or None, and a line for each problem; `grid` None: nothing to compare with."""
        path: Any = self.files.mask
        image, problems = reader_of(path)(path, self.subject)
        self._noted(path, image)
        if image is None:
            return None, problems
        where = f"{self.subject}: '{path}'"
        if len(image.shape) != 3:
            return None, [f"{where} is {image.shape}, expected 3 axes; a mask is one 3D volume"]
        mask, found = self._on_grid(path, (image.values != 0).astype(np.uint8), image.affine, grid)
        return mask > 0, [*found, *mask_problems(where, image.values)]

    def _files_of(self, channels: Iterable[str]) -> list[str]:
        """Return the contrasts whose files hold these channels."""
        return list(dict.fromkeys(file_of_channel(self.wanted.contrasts, channel)[0] for channel in channels))

    def _noted(self, path, image):
        if image is not None:
            self._digests[path], self._headers[path] = image.digest, image.header

    def _contrasts(self, names: Iterable[str]) -> Iterator[tuple[str, Image | None, list[str]]]:
        """Yield `(contrast, image as on disk, problems)`; the image is None if its grid cannot be trusted."""
        last, whole, found = None, None, list[str]()
        for name in dict.fromkeys(names):
            path = self.files.contrasts.get(name)
            if name in self._kept:
                yield name, self._kept[name], []
                continue
            if path is None:
                yield name, None, [f"{self.subject}: contrast '{name}' is missing; add its file"]
                continue
            if path != last:  # contrasts may share a 4D file
                last, whole, image = path, None, None  # release the previous one
                whole, found = reader_of(path)(path, self.subject)
                self._noted(path, whole)
            problems = found if whole is None else self.problems_of_axes(name, whole.shape)
            if whole is None or problems:
                yield name, None, problems
                continue
            chosen = self.files.volumes.get(name, (None,))[0]
            image = whole if chosen is None else Image(whole.values[..., chosen], whole.affine)
            problems = self._problems_of_grid(path, image)
            corrected = name if name in self.files.bias_correction else None
            problems += problems_of_volumes(self.subject, path, image.values, chosen, corrected)
            if not self.is_resampled:
                self._grid = self._grid or Grid(path, image.shape[:3], image.affine)
            yield name, image, problems

    def problems_of_axes(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Compare the lengths of all axes of a contrast's file with the config."""
        path = self.files.contrasts[name]
        chosen, volumes = self.files.volumes.get(name, (None, series_length(self.wanted.contrasts[name])))
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == (3 if volumes is None else 4) and volumes in (None, *shape[3:]):
            return []
        expected = "3 axes" if volumes is None else f"4 axes, the last of {volumes} volumes"
        advice = "list it as {file: ..., volumes: n} if it is a series" if volumes is None else "set volumes to match"
        advice = advice if chosen is None else "correct dataset.json"
        return [f"{self.subject}: '{path}' is {shape}, expected {expected}; {advice}"]

    def _problems_of_grid(self, path, image):
        if not self.is_resampled:
            return grid_problems(self.subject, path, image, self._grid)
        if self._grid is None or share_covered(self._grid, image):
            return []
        return [f"{self.subject}: '{path}' and '{self._grid.path}' do not overlap; correct their affines"]

    def _changes(self, name, image):
        """Return the arguments of `data.scans.resampling.prepared` that `files` requires; None: nothing to change."""
        is_corrected, moves = name in self.files.bias_correction, self._moves(image, self.grid)
        return (self.grid if moves else None, is_corrected) if is_corrected or moves else None

    def _moves(self, image, grid):
        """Tell whether an image must be resampled to the grid."""
        return self.is_resampled and bool(grid_problems("", self.subject, image, grid))

    def _on_grid(self, path, classes, affine, grid):
        """Resample class numbers to the grid if `files` requires it; return `(classes, problems)`."""
        image = Image(classes, affine)
        if not self.is_resampled or grid is None:
            return classes, grid_problems(self.subject, path, image, grid)
        if not self._moves(image, grid):
            return classes, []
        from data.scans.resampling import resample

        return resample(classes, affine, grid.shape, grid.affine, is_label=True), []
