"""Volumes on another grid, and without the bias field of the coils; both by SimpleITK."""

import numpy as np
import SimpleITK

from data.geometry import LPS_TO_RAS

LONGEST_EDGE = 48  # voxels of the copy on which the bias field is estimated; the field is smooth
ITERATIONS = (50, 50, 50, 50)  # per level, as in ITK
HISTOGRAM_BINS = 200  # of Otsu's threshold


def resample(values, affine, shape, target_affine, is_label=False):
    """Resample a volume to another grid, by world coordinates.

    Images are interpolated linearly, which keeps the range of values and causes no ringing at edges. Fine detail may
    alias where the target is coarser, because nothing is smoothed first. Labels and masks are taken from the nearest
    voxel.

    Args:
        values: `(X, Y, Z)`.
        affine: `(4, 4)` of the volume, voxel to world in RAS+, mm.
        shape: `(X', Y', Z')` of the target.
        target_affine: `(4, 4)` of the target.
        is_label: Whether values are class numbers.

    Returns:
        `(X', Y', Z')`, float32 or the labels' type; 0 outside the volume.
    """
    moving = _to_image(values if is_label else np.asarray(values, np.float32), affine)
    reference = _to_image(np.zeros(shape, np.uint8), target_affine)
    interpolator = SimpleITK.sitkNearestNeighbor if is_label else SimpleITK.sitkLinear
    moved = SimpleITK.Resample(moving, reference, SimpleITK.Transform(3, SimpleITK.sitkIdentity), interpolator, 0.0)
    return SimpleITK.GetArrayFromImage(moved).T


def correct_bias(values, affine):
    """Remove a smooth bias field by N4, estimated on a smaller copy, within Otsu's threshold.

    Args:
        values: `(X, Y, Z)`, not negative; for a single slice, the field is estimated in its plane.
        affine: `(4, 4)`.

    Returns:
        `(X, Y, Z)` float32. The result is reproducible on one machine, because only one thread is used.

    Raises:
        ValueError: There are negative values, which have no logarithm for N4 to take.

    Reference:
        Tustison et al., IEEE Trans. Med. Imaging 2010;29:1310; SimpleITK's N4BiasFieldCorrectionImageFilter.
    """
    if float(values.min()) < 0:
        raise ValueError("has negative values, of which N4 cannot take the logarithm")
    image = _to_image(np.asarray(values, np.float32), affine)
    if values.shape.count(1) == 1:
        image = _plane_of(values, affine)  # an edge of one voxel has no splines
    mask = SimpleITK.OtsuThreshold(image, 0, 1, HISTOGRAM_BINS)
    factors = [max(1, round(length / LONGEST_EDGE)) for length in image.GetSize()]
    corrector = SimpleITK.N4BiasFieldCorrectionImageFilter()
    corrector.SetNumberOfThreads(1)
    corrector.SetMaximumNumberOfIterations(ITERATIONS)
    corrector.Execute(SimpleITK.Shrink(image, factors), SimpleITK.Shrink(mask, factors))
    field = SimpleITK.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)).T.reshape(values.shape)
    return np.asarray(values, np.float32) / np.exp(field)


def prepared(values, affine, grid, is_corrected):
    """Remove the bias field of a contrast and resample it.

    Args:
        values: `(X, Y, Z)`, or `(X, Y, Z, n)` of a series.
        affine: `(4, 4)`.
        grid: Target `data.scans.grid.Grid`, or None to keep the grid.
        is_corrected: Whether to remove the bias field first.

    Returns:
        Values on the grid.
    """
    parts = [values] if values.ndim == 3 else np.moveaxis(values, 3, 0)
    if is_corrected:
        parts = [correct_bias(part, affine) for part in parts]
    if grid is not None:
        parts = [resample(part, affine, grid.shape, grid.affine) for part in parts]
    return parts[0] if values.ndim == 3 else np.stack(parts, axis=-1)


def _plane_of(values, affine):
    """Make a two-dimensional SimpleITK image of a volume that is one voxel thick."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(np.squeeze(np.asarray(values, np.float32)).T))
    spacing = np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0)
    image.SetSpacing([float(length) for length, size in zip(spacing, values.shape, strict=True) if size > 1])
    return image


def _to_image(values, affine):
    """Make a SimpleITK image of voxels `(X, Y, Z)` and an affine in RAS+."""
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(np.asarray(values).T))
    in_lps = LPS_TO_RAS @ np.asarray(affine, np.float64)
    spacing = np.linalg.norm(in_lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((in_lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(in_lps[:3, 3].tolist())
    return image
