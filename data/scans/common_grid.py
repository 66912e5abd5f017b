"""The files of a subject on one grid: resampled and bias-corrected if the config requests it."""

import numpy as np

from data.scans.nifti import Image
from data.scans.scan import grid_of_scan, grid_problems


def is_resampled(files):
    """Tell whether all files of a subject are resampled to the grid of one contrast.

    Without that contrast, for instance if a model needs only another one, a subject keeps its own grid.
    """
    return files.resample_to in files.contrasts


def grid_to_resample_to(files):
    """Return the `data.scans.scan.Grid` to which all files are resampled, or None if they must share one already."""
    return grid_of_scan(files.contrasts[files.resample_to], files.subject) if is_resampled(files) else None


def prepared(files, name, image, grid):
    """Remove the bias field of a contrast and resample it to a grid, if `files` requests it.

    Args:
        files: `SubjectFiles`.
        name: Contrast.
        image: Its `data.scans.nifti.Image`, 3D or 4D.
        grid: `data.scans.scan.Grid` of the subject.

    Returns:
        An `Image`.
    """
    if name not in files.bias_correction and not _moves(files, image, grid):
        return image
    from data.scans.resampling import correct_bias, resample  # SimpleITK is slow to import

    parts = [image.values] if image.values.ndim == 3 else np.moveaxis(image.values, 3, 0)
    if name in files.bias_correction:
        parts = [correct_bias(part, image.affine) for part in parts]
    if _moves(files, image, grid):
        parts = [resample(part, image.affine, grid.shape, grid.affine) for part in parts]
    return Image(parts[0] if image.values.ndim == 3 else np.stack(parts, axis=-1), grid.affine)


def _moves(files, image, grid):
    """Tell whether an image must be resampled to another grid."""
    return is_resampled(files) and bool(grid_problems("", files.subject, image, grid))


def on_grid(files, path, classes, affine, grid):
    """Resample class numbers to the grid if `files` requests it; returns `(classes, problems)`."""
    image = Image(classes, affine)
    if not is_resampled(files) or grid is None:
        return classes, grid_problems(files.subject, path, image, grid)
    if not _moves(files, image, grid):
        return classes, []
    from data.scans.resampling import resample

    return resample(classes, affine, grid.shape, grid.affine, is_label=True), []
