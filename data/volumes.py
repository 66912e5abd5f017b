"""NIfTI in and out, and the checks that every scan passes before work starts."""

from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from data.layouts import channel_names, file_of_channel, series_length
from data.nifti import AGAIN, read_image, whole_number
from utils.checks import InputError
from utils.runs import atomic_path

# Largest difference of two affines, in voxels per voxel and voxels of origin, that still counts as one grid: headers
# store float32, and quaternion and matrix forms of the same geometry differ by about 1e-4.
GRID_TOLERANCE = 1e-3
LARGEST_VALUE = float(np.finfo(np.float32).max)
STEPS = 65_535  # of intensities stored in 16 bits
ONE_GRID = 'all files of a subject must share one grid (README, "Preparing data")'


def read_contrasts(files, names, contrasts):
    """Read contrasts of one subject onto a common array.

    Args:
        files: `SubjectFiles` of the subject.
        names: Contrasts or channels to read, in this order; a 4D series stands for all of its volumes.
        contrasts: Contrast name -> pattern or `{"file": pattern, "volumes": n}`, as in a config.

    Returns:
        `(volume, affine)`: `(X, Y, Z, C)` float32 and `(4, 4)` float64, voxel to world in RAS+.

    Raises:
        InputError: One line for each file that cannot be used.
    """
    channels = channel_names(contrasts, names)
    sources = [file_of_channel(contrasts, channel) for channel in channels]
    volume, grid, problems = None, None, []
    for name in dict.fromkeys(name for name, _ in sources):
        image, found = _checked_contrast(files, name, contrasts, grid)
        problems += found
        if found:
            continue
        grid = grid or _Grid(files.contrasts[name], image.shape[:3], image.affine)
        if volume is None:
            volume = np.empty((*grid.shape, len(channels)), np.float32)
        for channel, (source, number) in enumerate(sources):
            if source == name:
                volume[..., channel] = image.values if number is None else image.values[..., number]
    if problems:
        raise InputError(problems)
    return volume, grid.affine


def grid_of_subject(files, names, contrasts):
    """Return `(shape (X, Y, Z), affine (4, 4))` of the first named contrast, from its header alone."""
    name, _ = file_of_channel(contrasts, channel_names(contrasts, names)[0])
    image = nibabel.load(files.contrasts[name])
    return image.shape[:3], np.asarray(image.affine, np.float64)


def read_label(files, labels, ignored=(), shape=None, affine=None):
    """Read the label map of one subject as class indices.

    Args:
        files: `SubjectFiles` with a label.
        labels: Class name -> voxel values that mean it; classes are numbered from 1 in this order.
        ignored: Voxel values that count as background, besides 0.
        shape: `(X, Y, Z)` that the label must have, or None.
        affine: `(4, 4)` that the label must have, or None.

    Returns:
        `(X, Y, Z)` uint8, 0 for background.

    Raises:
        InputError: The file cannot be used, holds a value that no class names, or no labelled voxel.
    """
    grid = None if shape is None else _Grid(None, tuple(shape[:3]), affine)
    classes, problems = _checked_label(files, labels, ignored, grid)
    if problems:
        raise InputError(problems)
    return classes


def read_mask(files, shape, affine=None):
    """Read the foreground mask of one subject, `(X, Y, Z)` bool (every non-zero voxel), or None if it has none."""
    if files.mask is None:
        return None
    mask, problems = _checked_mask(files, _Grid(None, tuple(shape[:3]), affine))
    if problems:
        raise InputError(problems)
    return mask


def read_constraint_map(path, subject, shape, affine, clusters):
    """Read the constraint map that step 1 made of a subject.

    Args:
        path: Its file.
        subject: Identifier, for messages.
        shape: `(X, Y, Z, ...)` of the contrasts.
        affine: `(4, 4)` of the contrasts.
        clusters: Largest class that may occur.

    Returns:
        `(X, Y, Z)`, 0 outside the foreground, classes from 1; the integer type on disk.

    Raises:
        InputError: The file is missing or unreadable, lies on another grid, or is no map of so many classes.
    """
    if not Path(path).is_file():
        raise InputError(f"{subject}: no constraint map '{path}'; run generate_constraint_maps.py first")
    image, problems = read_image(path, subject)
    problems = problems or _grid_problems(subject, path, image, _Grid(None, tuple(shape[:3]), affine))
    if not problems and image.values.dtype.kind not in "iu":
        problems = [f"{subject}: '{path}' holds {image.values.dtype} values, expected integers"]
    if not problems and len(image.shape) != 3:
        problems = [f"{subject}: '{path}' is {image.shape}, expected 3 axes"]
    low, high = (0, 1) if problems else (image.values.min(), image.values.max())
    if not (low >= 0 and 1 <= high <= clusters):
        problems = [f"{subject}: '{path}' has classes from {low} to {high}, expected 1 to {clusters}"]
    if problems:
        again = "make it again: generate_constraint_maps.py --overwrite"
        raise InputError([f"{line.removesuffix(AGAIN).removesuffix('; ')}; {again}" for line in problems])
    return image.values


def problems_of_subject(files, contrasts, names=None, *, labels=None, ignored=()):
    """Check every file of a subject by reading it once, one file in memory at a time.

    Args:
        files: `SubjectFiles` of the subject.
        contrasts: Contrast name -> pattern or `{"file": pattern, "volumes": n}`, as in a config.
        names: Contrasts to check; None for all.
        labels: Class name -> voxel values, to check the label map too; None leaves it unread.
        ignored: Label values that count as background.

    Returns:
        One line per problem: subject, file, what was found, what to do. Empty for a sound subject.
    """
    wanted = [file_of_channel(contrasts, channel)[0] for channel in channel_names(contrasts, names)]
    grid, problems = None, []
    for name in dict.fromkeys(wanted):
        image, found = _checked_contrast(files, name, contrasts, grid)
        problems += found
        if image is not None and grid is None:
            grid = _Grid(files.contrasts[name], image.shape[:3], image.affine)
    if files.mask is not None:
        problems += _checked_mask(files, grid)[1]
    if labels and files.label is not None:
        problems += _checked_label(files, labels, ignored, grid)[1]
    return problems


def write_nifti(path, array, affine, header_of=None, span=None):
    """Write an array as NIfTI, complete or not at all.

    Args:
        path: `*.nii` or `*.nii.gz`.
        array: `(X, Y, Z)` or `(X, Y, Z, C)`; integers stay integers (bool as uint8, 64 bits as 32), floats are float32.
        affine: `(4, 4)`, voxel to world in RAS+.
        header_of: NIfTI file whose units and orientation codes are kept, or None: mm, scanner coordinates.
        span: Lowest and highest value; the array is cut off there and stored in 65,536 steps between them, in a
            fraction of the space. None: values are stored as they are.
    """
    array = np.asarray(array)
    step = (span[1] - span[0]) / STEPS if span and span[1] > span[0] else 1.0
    if span:
        # In float64: rounded in float32, the highest value can come out as step 65,536, which 16 bits hold as 0.
        array = np.rint((np.clip(array.astype(np.float64), *span) - span[0]) / step).astype(np.uint16)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    elif array.dtype == bool:
        array = array.astype(np.uint8)
    elif array.dtype.itemsize == 8:
        if array.size and np.abs(array).max() > np.iinfo(np.int32).max:
            raise ValueError(f"{path}: integers beyond 32 bits")
        array = array.astype(np.int32)
    source = None if header_of is None else nibabel.load(header_of).header.copy()
    image = nibabel.Nifti1Image(array, affine, source, dtype=array.dtype)
    if source is None:
        image.header.set_xyzt_units("mm")
        image.set_sform(affine, code="scanner")
        image.set_qform(affine, code="scanner")
    else:
        image.header["cal_min"] = image.header["cal_max"] = 0  # the display window of another image
        image.header.set_slope_inter(1, 0)
    if span:
        image.header.set_slope_inter(step, span[0])
    with atomic_path(path) as temporary:
        nibabel.save(image, temporary)


class _Grid(NamedTuple):
    """Shape and affine that the files of a subject must share, and the file they were read from (None: unknown)."""

    path: Path | None
    shape: tuple
    affine: np.ndarray | None


def _checked_contrast(files, name, contrasts, grid):
    """Return `(image, problems)` of one contrast; the image is None when its grid cannot be trusted."""
    subject, path = files.subject, files.contrasts.get(name)
    if path is None:
        return None, [f"{subject}: contrast '{name}' is missing; add its file"]
    image, problems = read_image(path, subject)
    if problems:
        return None, problems
    volumes = series_length(contrasts[name])
    expected = "3 axes" if volumes is None else f"4 axes, the last of {volumes} volumes"
    if len(image.shape) != (3 if volumes is None else 4) or (volumes and image.shape[3] != volumes):
        advice = "list it as {file: ..., volumes: n} if it is a series" if volumes is None else "set volumes to match"
        return None, [f"{subject}: '{path}' is {image.shape}, expected {expected}; {advice}"]
    problems = _grid_problems(subject, path, image, grid)
    parts = [image.values] if volumes is None else np.moveaxis(image.values, 3, 0)
    for number, part in enumerate(parts, start=1):
        where = f"'{path}'" if volumes is None else f"'{path}', volume {number},"
        problems += _value_problems(subject, where, part)
    return image, problems


def _value_problems(subject, where, values):
    # Smallest and largest value pass NaN and Inf on, so that the sound case costs no boolean copy of the volume.
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(values.size - np.isfinite(values).sum())
        return [f"{subject}: {where} has {count} voxels that are NaN or infinite; export it again or set them to 0"]
    if max(-low, high) > LARGEST_VALUE:
        return [f"{subject}: {where} has values from {low:g} to {high:g}, beyond 32-bit floats; mend its scl_slope"]
    if np.float32(low) == np.float32(high):
        return [f"{subject}: {where} is constant ({low:g} everywhere); replace the file"]
    return []


def _grid_problems(subject, path, image, grid):
    """Compare shape and affine with the subject's grid (None: nothing to compare with)."""
    if grid is None:
        return []
    other = f"'{grid.path.name}'" if grid.path else "the scan"
    if image.shape[:3] != grid.shape:
        return [f"{subject}: '{path}' is {image.shape[:3]} but {other} is {grid.shape}; {ONE_GRID}"]
    if grid.affine is None:
        return []
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = np.abs(image.affine[:3, :3] - grid.affine[:3, :3]).max(axis=0) / spacing
    origin = np.abs(image.affine[:3, 3] - grid.affine[:3, 3]).max() / spacing.min()
    worst = max(axes.max(), origin)
    if worst > GRID_TOLERANCE:
        what = "origin" if origin > axes.max() else "voxel axes"
        return [f"{subject}: '{path}' and {other} differ in {what} by {worst:.3g} voxels; {ONE_GRID}"]
    return []


def _checked_label(files, labels, ignored, grid):
    """Return `(classes (X, Y, Z) uint8 or None, problems)`."""
    subject, path = files.subject, files.label
    image, problems = read_image(path, subject)
    if problems:
        return None, problems
    if len(image.shape) != 3:
        return None, [f"{subject}: '{path}' is {image.shape}, expected 3 axes; a label map is one 3D volume"]
    problems = _grid_problems(subject, path, image, grid)
    classes = np.zeros(image.shape, np.uint8)
    known = {0: 0, **dict.fromkeys(ignored, 0)}
    known |= {value: index for index, values in enumerate(labels.values(), start=1) for value in values}
    present = [(value, whole_number(value)) for value in np.unique(image.values).tolist()]
    unknown = [f"{value:.9g}" for value, meant in present if meant not in known]
    if unknown:
        listed = ", ".join(unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        problems.append(
            f"{subject}: '{path}' holds the values {listed}, which data.labels does not name; "
            "name them, or list them in data.ignored_label_values"
        )
    for value, meant in present:
        if known.get(meant):
            classes[image.values == value] = known[meant]
    if not problems and not classes.any():
        problems.append(f"{subject}: '{path}' has no labelled voxel; remove the file to use the subject as unlabelled")
    return classes, problems


def _checked_mask(files, grid):
    """Return `(mask (X, Y, Z) bool or None, problems)`."""
    subject, path = files.subject, files.mask
    image, problems = read_image(path, subject)
    if problems:
        return None, problems
    if len(image.shape) != 3:
        return None, [f"{subject}: '{path}' is {image.shape}, expected 3 axes; a mask is one 3D volume"]
    problems = _grid_problems(subject, path, image, grid)
    if not np.isfinite(image.values).all():
        problems.append(f"{subject}: '{path}' holds NaN or infinite values; a mask is 0 and 1")
    if not image.values.any():
        problems.append(f"{subject}: '{path}' is empty; a mask needs foreground")
    return image.values != 0, problems
