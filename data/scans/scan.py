"""One scan of any kind, file or folder: its header, its voxels, and whether its intensities can be used."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from data.layouts.files import SUFFIXES
from data.scans.grid import Grid
from data.scans.nifti import Image, hash_of, read_image
from utils.checks import InputError, counted

LARGEST_VALUE = float(np.finfo(np.float32).max)
SMALLEST_SCALE = 1e-30  # of values, its inverse the largest: beyond, products and quotients leave the float32 range
FEWEST_STEPS = 256  # float32 steps between the lowest and the highest value of a scan


def read_scan(path: Path, subject: str) -> tuple[Image | None, list[str]]:
    """Read a NIfTI file, or a folder that is one scan.

    Returns:
        As `data.scans.nifti.read_image`.
    """
    return reader_of(path)(path, subject)


def reader_of(path: Path) -> Callable[[Path, str], tuple[Image | None, list[str]]]:
    """Return the function that reads a scan: `read_image`, or `read_folder`."""
    if not is_folder(path):
        return read_image
    from data.scans.folders import read_folder  # SimpleITK takes a moment to import

    return read_folder


def grid_of_scan(path: Path, subject: str) -> Grid:
    """Return the `Grid` of a scan from its header alone.

    Raises:
        InputError: The header cannot be read.
    """
    if is_folder(path):
        from data.scans.folders import grid_of_folder

        return Grid(Path(path), *grid_of_folder(path, subject))
    try:
        image: Any = nibabel.load(path)
    except (OSError, ValueError, nibabel.filebasedimages.ImageFileError) as error:
        raise InputError(f"{subject}: '{path}' cannot be read ({error}); copy or export it again") from None
    return Grid(Path(path), image.shape[:3], np.asarray(image.affine, np.float64), image.shape)


def hash_of_file(path: Path) -> str:
    """Return 16 hexadecimal digits for the bytes of a file, or of all files in a folder that is one scan."""
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if is_folder(path) else [path]
    digests = []
    for part in parts:
        with open(part, "rb") as content:
            digests.append(hashlib.file_digest(content, "blake2b").digest())
    return hash_of(digests)


def is_folder(path: Path | str) -> bool:
    """Tell whether a path is a folder that is one scan; a folder named like a NIfTI file is a mistake."""
    return not Path(path).name.endswith(SUFFIXES) and Path(path).is_dir()


def value_problems(subject: str, where: str, values: np.ndarray, corrected: str | None = None) -> list[str]:
    """Say what is wrong with the intensities of one volume; at most one line.

    Args:
        subject: Identifier, for messages.
        where: The file, and which volume of it.
        values: `(X, Y, Z)`.
        corrected: Contrast whose bias field is to be removed, or None.
    """
    # Minimum and maximum propagate NaN and Inf, so that the normal case needs no boolean copy of the volume.
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


def problems_of_volumes(
    subject: str, path: Path, values: np.ndarray, chosen: int | None, corrected: str | None = None
) -> list[str]:
    """Say what is wrong with the intensities of one volume, or of each volume of a series.

    Args:
        subject: Identifier, for messages.
        path: The file.
        values: `(X, Y, Z)` or `(X, Y, Z, n)`.
        chosen: Which volume of the file this is, counted from 0; None: all of them.
        corrected: Contrast whose bias field is to be removed, or None.
    """
    parts = [values] if values.ndim == 3 else np.moveaxis(values, 3, 0)
    problems = []
    for number, part in enumerate(parts, start=1 if chosen is None else chosen + 1):
        where = f"'{path}'" if chosen is None and values.ndim == 3 else f"'{path}', volume {number},"
        problems += value_problems(subject, where, part, corrected)
    return problems
