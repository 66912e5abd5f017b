"""One scan of any kind into voxel values and affine, and what every scan must satisfy."""

from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np

from data.layouts.files import SUFFIXES
from data.scans.nifti import read_image
from utils.checks import InputError, counted

# Largest difference of two affines, in voxels per voxel and voxels of origin, that still counts as one grid: headers
# store float32, and quaternion and matrix forms of the same geometry differ by about 1e-4.
GRID_TOLERANCE = 1e-3
LARGEST_VALUE = float(np.finfo(np.float32).max)
SMALLEST_SCALE = 1e-30  # of values, and its inverse the largest: beyond, products and quotients leave 32-bit floats
FEWEST_STEPS = 256  # of 32-bit floats between the lowest and the highest value of a scan
ONE_GRID = 'all files of a subject must share one grid, or set data.resample_to (README, "Preparing data")'
SAMPLES = 12  # places along each axis at which two grids are compared


class Grid(NamedTuple):
    """Shape and affine that the files of a subject must share, and the file they were read from (None: unknown)."""

    path: Path | None
    shape: tuple
    affine: np.ndarray | None


def read_scan(path, subject):
    """Read a NIfTI file, or a folder that is one scan.

    Returns:
        As `data.scans.nifti.read_image`.
    """
    if not is_folder(path):
        return read_image(path, subject)
    from data.scans.folders import read_folder  # SimpleITK takes a moment to import

    return read_folder(path, subject)


def grid_of_scan(path, subject):
    """Return the `Grid` of a scan from its header alone.

    Raises:
        InputError: The header cannot be read.
    """
    if is_folder(path):
        from data.scans.folders import grid_of_folder

        return Grid(Path(path), *grid_of_folder(path, subject))
    try:
        image = nibabel.load(path)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{subject}: '{path}' cannot be read ({error}); copy or export it again") from None
    return Grid(Path(path), image.shape[:3], np.asarray(image.affine, np.float64))


def is_folder(path):
    """Tell whether a path is a folder that is one scan; a folder named like a NIfTI file is a mistake."""
    return not Path(path).name.endswith(SUFFIXES) and Path(path).is_dir()


def value_problems(subject, where, values, corrected=None):
    """Say what is wrong with the intensities of one volume, one line at most.

    Args:
        subject: Identifier, for messages.
        where: The file, and which volume of it.
        values: `(X, Y, Z)`.
        corrected: Contrast whose bias field is to be removed, or None.
    """
    # Smallest and largest value pass NaN and Inf on, so that the sound case costs no boolean copy of the volume.
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(values.size - np.isfinite(values).sum())
        broken = counted(count, "voxel that is", "voxels that are")
        return [f"{subject}: {where} has {broken} NaN or infinite; export it again or set them to 0"]
    if max(-low, high) > LARGEST_VALUE:
        return [f"{subject}: {where} has values from {low:g} to {high:g}, beyond 32-bit floats; fix its scl_slope"]
    if low != high and not SMALLEST_SCALE < max(-low, high) < 1 / SMALLEST_SCALE:
        size = "small" if max(-low, high) < 1 else "large"
        what = f"has values from {low:g} to {high:g}, too {size} to calculate with in 32-bit floats"
        return [f"{subject}: {where} {what}; fix its scl_slope"]
    if low != high and high - low < FEWEST_STEPS * np.spacing(np.float32(max(-low, high))):
        what = f"has values from {low:.9g} to {high:.9g}, which 32-bit floats hardly tell apart"
        return [f"{subject}: {where} {what}; subtract an offset"]
    if low == high:
        return [f"{subject}: {where} is constant ({low:g} everywhere); replace the file"]
    if corrected and (low < 0 or values.shape.count(1) > 1):
        why = "has negative values" if low < 0 else "is a single line of voxels"
        return [f"{subject}: {where} {why}; remove '{corrected}' from data.bias_correction"]
    return []


def grid_problems(subject, path, image, grid, cure=ONE_GRID):
    """Compare shape and affine with the subject's grid (None: nothing to compare with)."""
    if grid is None:
        return []
    other = f"'{grid.path.name}'" if grid.path else "the scan"
    if image.shape[:3] != grid.shape:
        return [f"{subject}: '{path}' is {image.shape[:3]} but {other} is {grid.shape}; {cure}"]
    if grid.affine is None:
        return []
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = np.abs(image.affine[:3, :3] - grid.affine[:3, :3]).max(axis=0) / spacing
    origin = np.abs(image.affine[:3, 3] - grid.affine[:3, 3]).max() / spacing.min()
    worst = max(axes.max(), origin)
    if worst > GRID_TOLERANCE:
        what = "origin" if origin > axes.max() else "voxel axes"
        return [f"{subject}: '{path}' and {other} differ in {what} by {worst:.3g} voxels; {cure}"]
    return []


def share_covered(grid, image):
    """Return the share of a grid that an image covers, from 0 to 1, by a coarse raster of places.

    Args:
        grid: `Grid`.
        image: Anything with `shape` and `affine`.
    """
    axes = [np.linspace(0, length - 1, SAMPLES) for length in grid.shape]
    places = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones((SAMPLES,) * 3)]).reshape(4, -1)
    index = (np.linalg.inv(image.affine) @ grid.affine @ places)[:3].T
    inside = (index >= -0.5) & (index <= np.array(image.shape[:3]) - 0.5)
    return float(inside.all(axis=1).mean())
