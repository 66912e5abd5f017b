"""The files of a subject on one grid: resampled and without bias field where the config asks for it."""

import numpy as np

from data.nifti import Image
from data.scans import grid_of_scan, grid_problems


def is_resampled(files):
    """Tell whether all files of a subject are brought to the grid of one contrast.

    Without that contrast, as when a model needs one other, a subject keeps its own grid.
    """
    return files.resample_to in files.contrasts


def grid_to_resample_to(files):
    """Return the `data.scans.Grid` that all files are brought to, or None: they must share one."""
    return grid_of_scan(files.contrasts[files.resample_to], files.subject) if is_resampled(files) else None


def prepared(files, name, image, grid):
    """Remove the bias field of a contrast and bring it to a grid, where `files` asks for it.

    Args:
        files: `SubjectFiles`.
        name: Contrast.
        image: Its `data.nifti.Image`, 3D or 4D.
        grid: `data.scans.Grid` of the subject.

    Returns:
        An `Image`.
    """
    if name not in files.bias_correction and not _moves(files, image, grid):
        return image
    from data.resampling import correct_bias, resample  # SimpleITK takes a moment to import

    parts = [image.values] if image.values.ndim == 3 else np.moveaxis(image.values, 3, 0)
    if name in files.bias_correction:
        parts = [correct_bias(part, image.affine) for part in parts]
    if _moves(files, image, grid):
        parts = [resample(part, image.affine, grid.shape, grid.affine) for part in parts]
    return Image(parts[0] if image.values.ndim == 3 else np.stack(parts, axis=-1), grid.affine)


def _moves(files, image, grid):
    """Tell whether an image must be brought to another grid."""
    return is_resampled(files) and bool(grid_problems("", files.subject, image, grid))


def on_grid(files, path, classes, affine, grid):
    """Bring class numbers to the grid where `files` asks for it; returns `(classes, problems)`."""
    image = Image(classes, affine)
    if not is_resampled(files) or grid is None:
        return classes, grid_problems(files.subject, path, image, grid)
    if not _moves(files, image, grid):
        return classes, []
    from data.resampling import resample

    return resample(classes, affine, grid.shape, grid.affine, is_label=True), []
