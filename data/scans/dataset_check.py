"""The contents of a dataset, subject by subject, from headers and label maps: a few milliseconds per file."""

import statistics
from dataclasses import dataclass, field, replace

import numpy as np
from nibabel import orientations

from data.geometry import voxel_ml
from data.layouts.subjects import SubjectFiles
from data.scans.grid import grid_problems, share_covered
from data.scans.scan import grid_of_scan
from data.scans.subject import SubjectReader
from utils.checks import InputError
from utils.config.data import Wanted

WELL_COVERED = 0.95  # share of the common grid; resampled contrasts that cover less are reported
UNLIKE_SPACING = 1.5  # report voxel sizes larger or smaller than the median of the dataset by more than this factor
UNLIKE_VOLUME = 10  # report volumes of a class larger or smaller than the median by more than this factor
FEW = 5  # subjects; fewer do not show what is usual


@dataclass(frozen=True)
class SubjectCheck:
    """What was found for one subject.

    Attributes:
        subject: Identifier.
        contrasts: Names of its contrasts.
        shape: `(X, Y, Z)` of the grid of its first contrast, or of the one that the others are resampled to.
        spacing: Voxel size along these axes, in the unit of the affine.
        orientation: Directions of these axes, such as `LPS`.
        voxels: Class -> labelled voxels; empty without a label map.
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


def check_subject(files: SubjectFiles, wanted: Wanted, *, whole: bool = False) -> SubjectCheck:
    """Check the files of one subject.

    Args:
        files: `SubjectFiles`.
        wanted: `config.data.wanted()`.
        whole: Read every voxel of every file, as steps 1 and 2 do.

    Returns:
        `SubjectCheck`.
    """
    reader = SubjectReader(files, wanted)
    problems, warnings, grid = _of_headers(reader)
    scan = grid and grid._replace(path=None)  # messages then call it "the scan", whichever contrast it comes from
    seen = {"problems": problems, "warnings": warnings}
    seen["voxels"] = _voxels(reader, scan, whole, **seen) if wanted.labels else {}
    if whole:
        problems += reader.problems(of_label=False)
    elif files.mask is not None and grid is not None:
        problems += reader.checked_mask(scan)[1]
    seen |= {"warnings": tuple(warnings), "problems": tuple(dict.fromkeys(problems))}
    if grid is None:
        return SubjectCheck(files.subject, tuple(wanted.contrasts), **seen)
    spacing = tuple(float(length) for length in np.linalg.norm(grid.affine[:3, :3], axis=0))
    seen |= {"voxel_ml": voxel_ml(grid.affine), "orientation": "".join(orientations.aff2axcodes(grid.affine))}
    return SubjectCheck(files.subject, tuple(wanted.contrasts), grid.shape, spacing, **seen)


def _of_headers(reader):
    """Return `(problems, warnings, grid)` that the headers of the contrasts show; the grid is None if none is read."""
    problems, warnings, grid, files = [], [], None, reader.files
    reference = files.resample_to if reader.is_resampled else next(iter(reader.wanted.contrasts))
    for name in dict.fromkeys([reference, *reader.wanted.contrasts]):
        try:
            found = grid_of_scan(files.contrasts[name], files.subject)
        except InputError as error:
            problems += error.lines
            continue
        grid = grid or found
        problems += reader.problems_of_axes(name, found.axes) if found.axes else []  # folders: only with all voxels
        if not reader.is_resampled:
            problems += grid_problems(files.subject, found.path, found, grid)
        elif (share := share_covered(grid, found)) < WELL_COVERED:
            warnings.append(f"{name} covers {share:.0%} of the grid of {reference}")
    return problems, warnings, grid


def _voxels(reader, grid, whole, problems, warnings):
    """Return class -> labelled voxels; add to the problems and warnings."""
    if reader.files.label is None:
        warnings.append("no label")
    if reader.files.label is None or (grid is None and not whole):
        return {}
    classes, found = reader.checked_label(grid)
    problems += found
    if found or grid is None:
        return {}
    names = list(reader.wanted.labels)
    counts = np.bincount(classes.ravel(), minlength=len(names) + 1)
    voxels = {name: int(counts[index]) for index, name in enumerate(names, start=1)}
    absent = [f"no {name}" for name, count in voxels.items() if not count]
    warnings += absent if any(voxels.values()) else ["nothing labelled (data.empty_labels)"]
    return voxels


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
