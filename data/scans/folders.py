"""A folder that is one scan: a DICOM series, the PNG masks drawn on one in CHAOS, or several NIfTI files.

DICOM and PNG are read with SimpleITK. Its arrays are `[slice, row, column]`; voxels here are `(column, row, slice)`,
the index that the affine refers to, so that a mask and its slice agree in any orientation.
"""

import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK

from data.geometry import LPS_TO_RAS
from data.layouts.files import SUFFIXES
from data.scans.grid import Grid, grid_problems
from data.scans.nifti import AGAIN, Image, read_image
from utils.checks import InputError, counted

SERIES = "0020|000e"  # DICOM tag of the series
INVERTED = "0028|0004", "MONOCHROME1"  # the tag for the meaning of large values, and its value if they mean black
EVEN = 0.02  # largest deviation of a gap between slices, as a share of the median: positions are rounded to 0.01 mm
STRAIGHT_MM = 0.1  # largest in-plane shift of a slice
GREYS = {63: (55, 70), 126: (110, 135), 189: (175, 200), 252: (240, 255)}  # code of a CHAOS mask: its grey values
SIDES = {"left": 1, "right": 2}  # value of the cortex in a labelsTr folder; the medulla's is 2 more
MEDULLA = 2


def read_folder(path: Path, subject: str) -> tuple[Image | None, list[str]]:
    """Read one folder as one image.

    Args:
        path: Folder with `*.png` (masks of CHAOS), with NIfTI files (in labelsTr one mask per structure, otherwise
            volumes of a series in the order of the numbers in their names), or with DICOM slices.
        subject: Identifier, for messages.

    Returns:
        `(data.scans.nifti.Image, [])`, or `(None, [line])` for a folder that cannot be used.
    """
    path = Path(path)
    scans, pictures = _kinds(path)
    try:
        if pictures:
            return _read_masks(path, pictures, subject), []
        if scans and path.name == "labelsTr":
            return _read_structures(scans, subject), []
        if scans:
            return _read_volumes(scans, subject), []
        return _read_series(path, subject), []
    except InputError as error:
        return None, error.lines


def grid_of_folder(path: Path, subject: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Return `(shape (X, Y, Z), affine (4, 4))` of a folder from headers alone.

    Raises:
        InputError: The folder holds no series, or one that does not form a grid; one line.
    """
    path = Path(path)
    scans, pictures = _kinds(path)
    if scans:
        image: Any = nibabel.load(scans[0])
        return image.shape[:3], np.asarray(image.affine, np.float64)
    _, shape, affine = _geometry(_series_of_masks(path, subject) if pictures else path, subject)
    return shape, affine


def _kinds(folder):
    """List the NIfTI files and the PNG files of a folder, sorted by the numbers in their names."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    # Sort by the numbers in the names: echo 10 comes after echo 9.
    files.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    scans = [path for path in files if path.name.endswith(SUFFIXES)]
    return scans, [path for path in files if path.suffix.lower() == ".png"]


def _geometry(folder, subject):
    """Return the slices of a DICOM series, ordered by position along its normal, and their grid.

    Returns:
        `(paths, shape (X, Y, Z), affine (4, 4))`.

    Raises:
        InputError: There is no series, more than one, or its slices do not form a grid.
    """
    where = f"{subject}: '{folder}'"
    paths, slices = _slices_in(folder, where)
    first = slices[0]
    turn = np.reshape(first.GetDirection(), (3, 3))
    origins = np.array([reader.GetOrigin() for reader in slices])
    order = np.argsort(origins @ turn[:, 2], kind="stable")
    origins, paths = origins[order], [paths[place] for place in order]
    gap = _gap(origins, turn, [path.name for path in paths], where, first.GetSpacing()[2])
    affine = np.eye(4)
    affine[:3, :3] = turn * [*first.GetSpacing()[:2], gap]
    affine[:3, 3] = origins[0]
    return paths, (*first.GetSize()[:2], len(paths)), LPS_TO_RAS @ affine


def _slices_in(folder, where):
    """Return `(paths, readers)` of the DICOM slices in a folder, which must form one stack."""
    paths, slices = [], []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        reader = SimpleITK.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue  # not DICOM: a list of files, a preview
        paths.append(path)
        slices.append(reader)
    if not slices:
        raise InputError(f"{where} holds no DICOM slices; {AGAIN}")
    for path, reader in zip(paths, slices, strict=True):
        if len(reader.GetSize()) > 2 and reader.GetSize()[2] > 1:
            frames = f"'{path.name}' is a multi-frame file of {reader.GetSize()[2]} slices"
            raise InputError(f"{where}: {frames}; convert it to NIfTI (dcm2niix)")
        if reader.HasMetaDataKey(INVERTED[0]) and reader.GetMetaData(INVERTED[0]).strip() == INVERTED[1]:
            raise InputError(f"{where}: '{path.name}' shows bright as dark ({INVERTED[1]}); convert it")
    series = {reader.GetMetaData(SERIES) for reader in slices if reader.HasMetaDataKey(SERIES)}
    if len(series) > 1:
        raise InputError(f"{where} holds {len(series)} series; keep the slices of one")
    first = slices[0]
    for path, reader in zip(paths, slices, strict=True):
        is_same = reader.GetSize() == first.GetSize() and reader.GetSize()[2] == 1
        is_same &= np.allclose(reader.GetSpacing()[:2], first.GetSpacing()[:2])
        if not (is_same and np.allclose(reader.GetDirection(), first.GetDirection(), atol=1e-4)):
            what = "differ in size, pixels or direction"
            raise InputError(f"{where}: '{path.name}' and '{paths[0].name}' {what}; keep the slices of one stack")
    return paths, slices


def _gap(origins, turn, names, where, thickness):
    """Return the slice spacing in mm; refuse slices that are missing, duplicate or shifted."""
    if len(origins) == 1:
        return thickness
    heights = origins @ turn[:, 2]
    gaps = np.diff(heights)
    gap, doubled = float(np.median(gaps)), np.flatnonzero(gaps < 1e-3)
    if len(doubled):
        one, other = names[doubled[0]], names[doubled[0] + 1]
        raise InputError(f"{where}: '{one}' and '{other}' have the same position; keep one")
    if np.abs(gaps - gap).max() > EVEN * gap:
        place = int(np.abs(gaps - gap).argmax())
        raise InputError(
            f"{where}: slices are {gap:.3g} mm apart, but '{names[place]}' and '{names[place + 1]}' "
            f"{gaps[place]:.3g} mm; add the missing slices"
        )
    within = (origins - origins[0]) @ turn[:, :2]
    if np.abs(within).max() > STRAIGHT_MM:
        raise InputError(f"{where}: its slices are shifted against each other within their plane; resample it")
    return float(heights[-1] - heights[0]) / (len(names) - 1)


def _read_series(folder, subject):
    paths, shape, affine = _geometry(folder, subject)
    # Read slice by slice, each with its own slope: a series reader rounds and clips all to the type of the first.
    parts = [_read_slice(path, subject) for path in paths]
    values = np.empty(shape, np.result_type(*parts))
    for number, part in enumerate(parts):
        values[..., number] = part
    return Image(values, affine)


def _read_slice(path, subject):
    """Read one DICOM slice, `(column, row)`, scaled by its own slope and intercept, in a sufficient data type."""
    try:
        image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{subject}: '{path.parent}' cannot be read ({reason}); {AGAIN}") from None
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{subject}: '{path.parent}' holds colours; export it as grey values")
    return SimpleITK.GetArrayFromImage(image)[0].T


def _series_of_masks(folder, subject):
    """Return the DICOM folder on which the masks in `<series>/Ground` were drawn; for T1DUAL, the in-phase images."""
    for name in ("DICOM_anon/InPhase", "DICOM_anon"):
        if (folder.parent / name).is_dir():
            return folder.parent / name
    raise InputError(f"{subject}: '{folder}' has no series '{folder.parent / 'DICOM_anon'}'; add it")


def _read_masks(folder, pictures, subject):
    """Read one PNG per slice, matched by file name; a mask has the same pixels as its slice."""
    series = _series_of_masks(folder, subject)
    paths, shape, affine = _geometry(series, subject)
    masks, slices = {path.stem: path for path in pictures}, [path.stem for path in paths]
    if unpaired := sorted(masks.keys() ^ set(slices)):
        raise InputError(
            f"{subject}: '{folder}' has {counted(len(masks), 'mask')} and '{series}' {counted(len(slices), 'slice')}; "
            "without its pair: "
            f"{', '.join(unpaired[:3])}{', ...' if len(unpaired) > 3 else ''}; remove the subject or fix it"
        )
    values = np.zeros(shape, np.uint8)
    for number, name in enumerate(slices):
        mask = SimpleITK.ReadImage(str(masks[name]))
        if mask.GetNumberOfComponentsPerPixel() > 1 or mask.GetSize() != shape[:2]:
            what = "holds colours" if mask.GetSize() == shape[:2] else f"is {mask.GetSize()}, its slice {shape[:2]}"
            raise InputError(f"{subject}: '{masks[name]}' {what}; remove the subject or fix it")
        values[..., number] = SimpleITK.GetArrayFromImage(mask).T
    for code, (low, high) in GREYS.items():
        values[(values >= low) & (values <= high)] = code
    return Image(values, affine)


def _read_volumes(scans, subject):
    """Read 3D files that together form a series, `(X, Y, Z, n)`."""
    images = _all_on_one_grid(scans, subject)
    values = [image.values for image in images]
    if len(values) == 1:
        return images[0]
    return Image(np.stack(values, axis=-1), images[0].affine)


def _read_structures(scans, subject):
    """Merge masks of kidneys (`*left*volume*`) and of cortices (`*left*cortex*`): 1, 2 cortex, 3, 4 medulla."""
    images = _all_on_one_grid(scans, subject)
    values, folder = np.zeros(images[0].shape, np.uint8), scans[0].parent
    for side, value in SIDES.items():
        parts = {}
        for what in ("volume", "cortex"):
            found = [n for n, path in enumerate(scans) if side in path.name.lower() and what in path.name.lower()]
            if len(found) > 1 or not found and what == "volume":
                listed = ", ".join(scans[n].name for n in found) or "no file"
                raise InputError(f"{subject}: '{folder}' has {listed} for *{side}*{what}*; one mask is needed")
            parts[what] = images[found[0]].values > 0 if found else np.zeros(values.shape, bool)
        kidney = parts["volume"] | parts["cortex"]
        if shared := np.count_nonzero(values[kidney]):
            common = counted(shared, "voxel")
            raise InputError(f"{subject}: left and right masks in '{folder}' share {common}; correct them")
        values[kidney] = value + MEDULLA
        values[parts["cortex"]] = value
    return Image(values, images[0].affine)


def _all_on_one_grid(scans, subject):
    images, problems = [], []
    for path in scans:
        image, found = read_image(path, subject)
        problems += found
        images.append(image)
    if problems:
        raise InputError(problems)
    grid = Grid(scans[0], images[0].shape[:3], images[0].affine)
    for path, image in zip(scans, images, strict=True):
        problems += grid_problems(subject, path, image, grid, "resample one to the other")
        if len(scans) > 1 and len(image.shape) != 3:
            problems.append(f"{subject}: '{path}' is {image.shape}, expected 3 axes, as it is one file of several")
    if problems:
        raise InputError(problems)
    return images
