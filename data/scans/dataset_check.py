"""Contents of a dataset, subject by subject, from headers and label maps: a few milliseconds per file."""

import statistics
from dataclasses import dataclass, field, replace

import nibabel
import numpy as np
from nibabel import orientations

from data.geometry import voxel_ml
from data.layouts.subjects import series_length
from data.scans.common_grid import is_resampled
from data.scans.scan import grid_of_scan, grid_problems, is_folder, share_covered
from data.scans.volumes import problems_of_subject, read_label, read_mask
from utils.checks import InputError

WELL_COVERED = 0.95  # share of the common grid; resampled contrasts that cover less are reported
UNLIKE_SPACING = 1.5  # times the median voxel size of the dataset, or less than its inverse
UNLIKE_VOLUME = 10  # times the median volume of a class, or less than its inverse
FEW = 5  # subjects; with fewer, it is unknown what is usual


@dataclass(frozen=True)
class SubjectCheck:
    """What was found for one subject.

    Attributes:
        subject: Identifier.
        contrasts: Names of its contrasts.
        shape: `(X, Y, Z)` of the grid of its first contrast, or of the one that others are resampled to.
        spacing: Voxel size along these axes, in the unit of the affine.
        orientation: Directions of these axes, such as `LPS`.
        voxels: Class -> labelled voxels; empty without label.
        warnings: What should be checked.
        problems: What must be fixed: subject, file, what was found, what to do.
        voxel_ml: Volume of a voxel in mL, where the unit of the affine is mm.
    """

    subject: str
    contrasts: tuple[str, ...]
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    orientation: str = ""
    voxels: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    voxel_ml: float = 0.0

    def volumes(self, is_mm):
        """Class -> volume in mL, or number of voxels if the voxel size is not known."""
        size = self.voxel_ml if is_mm else 1
        return {name: count * size for name, count in self.voxels.items()}


def check_subject(files, contrasts, labels, ignored=(), *, whole=False):
    """Check the files of one subject.

    Args:
        files: `SubjectFiles`.
        contrasts: `data.contrasts` of the config.
        labels: `data.labels` of the config.
        ignored: `data.ignored_label_values` of the config.
        whole: Read every voxel of every file, as steps 1 and 2 do.

    Returns:
        `SubjectCheck`.
    """
    problems, warnings, grid = [], [], None
    reference = files.resample_to if is_resampled(files) else next(iter(contrasts))
    for name in [reference, *(name for name in contrasts if name != reference)]:
        try:
            found = grid_of_scan(files.contrasts[name], files.subject)
        except InputError as error:
            problems += error.lines
            continue
        grid = grid or found
        problems += _problems_of_axes(files, name, contrasts)
        if not is_resampled(files):
            problems += grid_problems(files.subject, found.path, found, grid)
        elif (share := share_covered(grid, found)) < WELL_COVERED:
            warnings.append(f"{name} covers {share:.0%} of the grid of {reference}")
    voxels = {}
    if labels and files.label is None:
        warnings.append("no label")
    elif labels and grid is not None:
        try:
            classes = read_label(files, labels, ignored, grid.shape, grid.affine)
            counts = np.bincount(classes.ravel(), minlength=len(labels) + 1)
            voxels = {name: int(counts[index]) for index, name in enumerate(labels, start=1)}
            absent = [f"no {name}" for name, count in voxels.items() if not count]
            warnings += absent if any(voxels.values()) else ["nothing labelled (data.empty_labels)"]
        except InputError as error:
            problems += error.lines
    if files.mask is not None and grid is not None:
        try:
            read_mask(files, grid.shape, grid.affine)
        except InputError as error:
            problems += error.lines
    if whole:
        problems += problems_of_subject(files, contrasts, labels=labels, ignored=ignored)
    seen = {"warnings": tuple(warnings), "problems": tuple(dict.fromkeys(problems))}
    seen |= {"voxel_ml": voxel_ml(grid.affine)} if grid is not None else {}
    if grid is None:
        return SubjectCheck(files.subject, tuple(contrasts), **seen)
    spacing = tuple(float(length) for length in np.linalg.norm(grid.affine[:3, :3], axis=0))
    codes = "".join(orientations.aff2axcodes(grid.affine))
    return SubjectCheck(files.subject, tuple(contrasts), grid.shape, spacing, codes, voxels, **seen)


def point_out_unlike(checks, is_mm):
    """Add warnings where a subject differs from most: orientation, voxel size, volume of a class.

    Args:
        checks: List of `SubjectCheck`.
        is_mm: Whether the voxel size is known.

    Returns:
        The list with warnings added.
    """
    sound = [check for check in checks if check.shape]
    if len(sound) < FEW:
        return checks
    usual = statistics.mode(check.orientation for check in sound)
    spacing = np.median([_along_patient(check) for check in sound], axis=0)
    names = dict.fromkeys(name for check in sound for name in check.voxels)
    volumes = {name: [check.volumes(is_mm).get(name) for check in sound] for name in names}
    typical = {name: statistics.median(filter(None, found)) for name, found in volumes.items() if any(found)}
    return [_with_differences(check, usual, spacing, typical, is_mm) if check.shape else check for check in checks]


def _with_differences(check, orientation, spacing, typical, is_mm):
    warnings = list(check.warnings)
    if check.orientation != orientation:
        warnings.append(f"orientation {check.orientation}, most are {orientation}")
    if _is_unlike(_along_patient(check) / spacing, UNLIKE_SPACING):
        warnings.append("voxel size unlike most")
    for name, volume in check.volumes(is_mm).items():
        if volume and _is_unlike(volume / typical[name], UNLIKE_VOLUME):
            warnings.append(f"volume of {name} unlike most")
    return replace(check, warnings=tuple(warnings))


def _is_unlike(ratio, limit):
    return bool(np.max(ratio) > limit or np.min(ratio) < 1 / limit)


def _along_patient(check):
    """Voxel size along left-right, posterior-anterior, inferior-superior."""
    axes = orientations.axcodes2ornt(tuple(check.orientation))[:, 0].astype(int)
    return np.array(check.spacing)[np.argsort(axes)]


def _problems_of_axes(files, name, contrasts):
    """Compare the number of axes in the header with the config; for folders, only steps 1 and 2 do this."""
    path = files.contrasts[name]
    if is_folder(path):
        return []
    shape = [*nibabel.load(path).shape]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    volumes = files.volumes[name][1] if name in files.volumes else series_length(contrasts[name])
    if shape[3:] == ([] if volumes is None else [volumes]):
        return []
    expected = "3 axes" if volumes is None else f"4 axes, the last of {volumes} volumes"
    advice = "list it as {file: ..., volumes: n} if it is a series" if volumes is None else "set volumes to match"
    return [f"{files.subject}: '{path}' is {tuple(shape)}, expected {expected}; {advice}"]
