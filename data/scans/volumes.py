"""The scans of a subject in and NIfTI out, and the checks that every scan passes before work starts."""

import functools
from pathlib import Path

import nibabel
import numpy as np

from data.layouts.subjects import channel_names, file_of_channel, series_length
from data.scans.common_grid import grid_to_resample_to, is_resampled, on_grid, prepared
from data.scans.nifti import AGAIN, Image, read_image, whole_number
from data.scans.scan import Grid, grid_of_scan, grid_problems, is_folder, read_scan, share_covered, value_problems
from utils.checks import InputError
from utils.runs import atomic_path

MAP_GRID = "a constraint map lies on the grid of its scans"
STEPS = 65_535  # of intensities stored in 16 bits


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
    read = functools.lru_cache(maxsize=1)(read_scan)  # contrasts may share a 4D file
    volume, grid, problems = None, grid_to_resample_to(files), []
    for name in dict.fromkeys(name for name, _ in sources):
        image, found = _checked_contrast(files, name, contrasts, grid, read)
        problems += found
        if found:
            continue
        grid = grid or Grid(files.contrasts[name], image.shape[:3], image.affine)
        image = prepared(files, name, image, grid)
        if volume is None:
            # One channel after the other in memory: most work goes through one at a time.
            volume = np.moveaxis(np.empty((len(channels), *grid.shape), np.float32), 0, -1)
        for channel, (source, number) in enumerate(sources):
            if source == name:
                volume[..., channel] = image.values if number is None else image.values[..., number]
    if problems:
        raise InputError(problems)
    return volume, grid.affine


def grid_of_subject(files, names, contrasts):
    """Return `(shape (X, Y, Z), affine (4, 4))` that `read_contrasts` gives, from headers alone."""
    name, _ = file_of_channel(contrasts, channel_names(contrasts, names)[0])
    _, shape, affine = grid_to_resample_to(files) or grid_of_scan(files.contrasts[name], files.subject)
    return shape, affine


def read_label(files, labels, ignored=(), shape=None, affine=None):
    """Read the label map of one subject as class indices.

    Args:
        files: `SubjectFiles` with a label.
        labels: Class name -> voxel values that mean it, or names of `files.label_names`; classes are numbered from 1 in
            this order.
        ignored: Voxel values, or names of them, that count as background, besides 0.
        shape: `(X, Y, Z)` that the label must have, or None.
        affine: `(4, 4)` that the label must have, or None.

    Returns:
        `(X, Y, Z)` uint8, 0 for background.

    Raises:
        InputError: The file cannot be used, holds a value that no class names, or no labelled voxel (if
            `files.empty_labels` is `"refuse"`).
    """
    grid = grid_to_resample_to(files) if shape is None else Grid(None, tuple(shape[:3]), affine)
    classes, problems = _checked_label(files, labels, ignored, grid)
    if problems:
        raise InputError(problems)
    return classes


def read_mask(files, shape, affine=None):
    """Read the foreground mask of one subject, `(X, Y, Z)` bool (two values, one of them 0), or None if it has none."""
    if files.mask is None:
        return None
    mask, problems = _checked_mask(files, Grid(None, tuple(shape[:3]), affine))
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
    problems = problems or grid_problems(subject, path, image, Grid(None, tuple(shape[:3]), affine), MAP_GRID)
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


def read_label_map(path, subject, largest):
    """Read a label map of this suite, which may have been opened and saved by an editor since.

    Args:
        path: Its file; floats are fine where all of them are whole numbers.
        subject: Identifier, for messages.
        largest: Largest class that may occur.

    Returns:
        `Image` of `(X, Y, Z)` integers.

    Raises:
        InputError: It cannot be read, has other axes, or holds what is no class.
    """
    image, problems = read_image(path, subject)
    again = "restore it, or make it again with --overwrite"
    if not problems and len(image.shape) != 3:
        problems = [f"{subject}: '{path}' is {image.shape}, expected 3 axes; {again}"]
    if problems:
        raise InputError(problems)
    present = np.unique(image.values).tolist()
    strange = [value for value in present if whole_number(value) not in range(largest + 1)]
    if strange:
        listed = ", ".join(f"{value:.9g}" for value in strange[:8]) + (", ..." if len(strange) > 8 else "")
        raise InputError(f"{subject}: '{path}' holds {listed}, expected whole numbers from 0 to {largest}; {again}")
    return Image(np.rint(image.values).astype(np.uint8 if largest < 256 else np.int32), image.affine)


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
    read = functools.lru_cache(maxsize=1)(read_scan)
    grid, problems = grid_to_resample_to(files), []
    for name in dict.fromkeys(wanted):
        image, found = _checked_contrast(files, name, contrasts, grid, read)
        problems += found
        if image is not None and grid is None:
            grid = Grid(files.contrasts[name], image.shape[:3], image.affine)
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
    # A DICOM series has no such header, and a file of another kind is not worth an error here.
    source = None if header_of is None or is_folder(header_of) else nibabel.load(header_of).header.copy()
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


def _checked_contrast(files, name, contrasts, grid, read):
    """Return `(image, problems)` of one contrast as on disk; the image is None when its grid cannot be trusted."""
    subject, path = files.subject, files.contrasts.get(name)
    if path is None:
        return None, [f"{subject}: contrast '{name}' is missing; add its file"]
    image, problems = read(path, subject)
    if problems:
        return None, problems
    chosen, volumes = files.volumes.get(name, (None, series_length(contrasts[name])))
    expected = "3 axes" if volumes is None else f"4 axes, the last of {volumes} volumes"
    if len(image.shape) != (3 if volumes is None else 4) or (volumes and image.shape[3] != volumes):
        advice = "list it as {file: ..., volumes: n} if it is a series" if volumes is None else "set volumes to match"
        advice = advice if chosen is None else "correct dataset.json"
        return None, [f"{subject}: '{path}' is {image.shape}, expected {expected}; {advice}"]
    if chosen is not None:
        image = Image(image.values[..., chosen], image.affine)
    problems = [] if is_resampled(files) else grid_problems(subject, path, image, grid)
    if grid and is_resampled(files) and not share_covered(grid, image):
        problems = [f"{subject}: '{path}' and '{grid.path}' do not overlap; correct their affines"]
    parts = [image.values] if image.values.ndim == 3 else np.moveaxis(image.values, 3, 0)
    for number, part in enumerate(parts, start=1 if chosen is None else chosen + 1):
        where = f"'{path}'" if volumes is None else f"'{path}', volume {number},"
        problems += value_problems(subject, where, part, name if name in files.bias_correction else None)
    return image, problems


def _checked_label(files, labels, ignored, grid):
    """Return `(classes (X, Y, Z) uint8 or None, problems)`."""
    subject, path = files.subject, files.label
    image, problems = read_scan(path, subject)
    if problems:
        return None, problems
    if len(image.shape) != 3:
        return None, [f"{subject}: '{path}' is {image.shape}, expected 3 axes; a label map is one 3D volume"]
    classes = np.zeros(image.shape, np.uint8)
    known = {0: 0, **dict.fromkeys(_values_of(files, ignored), 0)}
    for index, members in enumerate(labels.values(), start=1):
        known |= dict.fromkeys(_values_of(files, members), index)
    present = [(value, whole_number(value)) for value in np.unique(image.values).tolist()]
    problems = _unknown_values(files, [pair for pair in present if pair[1] not in known])
    for value, meant in present:
        if known.get(meant):
            classes[image.values == value] = known[meant]
    has_no_label, (classes, found) = not classes.any(), on_grid(files, path, classes, image.affine, grid)
    problems = [*found, *problems]
    if not problems and has_no_label and files.empty_labels == "refuse":
        cure = "remove the file to use the subject as unlabelled, or set data.empty_labels: allow if all is background"
        problems.append(f"{subject}: '{path}' has no labelled voxel; {cure}")
    elif not problems and not has_no_label and not classes.any():
        problems.append(f"{subject}: '{path}' has no labelled voxel on the grid of the scans; correct its affine")
    return classes, problems


def _unknown_values(files, unknown):
    """Say which values of a label map mean nothing, `(value, the whole number it means)`; one line at most."""
    subject, path = files.subject, files.label
    names = {value: f" ({name})" for name, values in files.label_names.items() if len(values) == 1 for value in values}
    broken = [pair for pair in unknown if not isinstance(pair[1], int)]
    shown = [f"{value:.9g}{names.get(meant, '')}" for value, meant in broken or unknown]
    listed = ", ".join(shown[:8]) + (", ..." if len(shown) > 8 else "")
    if broken:
        cure = "export it as class numbers; label maps are resampled by nearest neighbour, never interpolated"
        return [f"{subject}: '{path}' holds the values {listed}, which are not whole numbers; {cure}"]
    if unknown:
        cure = "name them, or list them in data.ignored_label_values"
        return [f"{subject}: '{path}' holds the values {listed}, which data.labels does not name; {cure}"]
    return []


def _values_of(files, members):
    """The values that numbers and names of a config mean in the label map of a subject."""
    return [value for member in members for value in files.label_names.get(member, (member,))]


def _checked_mask(files, grid):
    """Return `(mask (X, Y, Z) bool or None, problems)`."""
    subject, path = files.subject, files.mask
    image, problems = read_scan(path, subject)
    if problems:
        return None, problems
    if len(image.shape) != 3:
        return None, [f"{subject}: '{path}' is {image.shape}, expected 3 axes; a mask is one 3D volume"]
    low, high = image.values.min(), image.values.max()  # both NaN if one value is
    if not (np.isfinite(low) and np.isfinite(high)):
        problems.append(f"{subject}: '{path}' holds NaN or infinite values; a mask is 0 and 1")
    elif not image.values.any():
        problems.append(f"{subject}: '{path}' is empty; a mask needs foreground")
    elif not np.logical_or(image.values == low, image.values == high).all():
        what = f"holds more than two values, from {low:g} to {high:g}; a mask is 0 and 1"
        problems.append(f"{subject}: '{path}' {what}: cut probabilities and label maps at a threshold")
    elif low != high and low and high:
        problems.append(f"{subject}: '{path}' holds {low:g} and {high:g}, but no 0; a mask is 0 and 1")
    mask, found = on_grid(files, path, (image.values != 0).astype(np.uint8), image.affine, grid)
    return mask > 0, [*found, *problems]
