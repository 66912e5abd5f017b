"""Foreground and intensity scaling: the preprocessing shared by steps 1, 2 and `predict.py`."""

import math

import numpy as np
from nibabel import orientations
from scipy import ndimage

from utils.checks import InputError, check_axes

BRIGHT_PERCENTILE = 99.5  # of a contrast's distance from air; the very brightest voxels are vessels and spikes
NOISE_PERCENTILE = 99.5  # of the score in air: ghosts and ringing count as air, single bright voxels do not
SMALLEST_SPAN = 1e-30  # of intensities; smaller ranges are scaled in 64 bits
STEP = 7  # every seventh voxel is enough for these two percentiles; being odd, it skips no column
MARGIN_VOXELS = 3  # in-plane distance from bright tissue; voxels farther away count as air
HISTOGRAM_BINS = 256
IN_PLANE = np.zeros((3, 3, 3), bool)  # neighbours within a slice
RAS, AXIAL = orientations.axcodes2ornt("RAS"), 2  # AXIAL is the number of the axis from feet to head
IN_PLANE[:, 1, 1] = IN_PLANE[1, :, 1] = True


def foreground_mask(volume, affine=None):
    """Segment the head or body in a volume, for any contrasts and despite artefacts in the surrounding air.

    Each contrast is converted to its difference from air, whose level is measured in the four in-plane corners: air is
    black in magnitude images, but grey in signed inversion recovery. The mean difference over contrasts is thresholded
    by Otsu's method; the threshold is then lowered to just above the values in the air outside, so that dark tissue
    (cerebrospinal fluid, bone, muscle beside fat) is kept. If air is exactly zero, every connected voxel is kept.

    Args:
        volume: Finite intensities in any unit, `(X, Y, Z, C)`.
        affine: `(4, 4)`, voxel to world in RAS+, to find the axial slices; None: they lie along Z.

    Returns:
        Boolean, `(X, Y, Z)`: the largest connected region, its holes filled in every axial slice.

    Raises:
        InputError: No voxel differs from air.

    Reference:
        Otsu 1979 for the threshold; the rest is ours (the authors take "> 0" in the first contrast).
    """
    check_axes("volume", volume.shape, "X Y Z C")
    if affine is not None and (on_disk := orientations.io_orientation(affine))[2, 0] != AXIAL:
        # The result must not depend on how slices are stored, so neighbours and corners are taken within axial slices.
        there, back = (orientations.ornt_transform(*pair) for pair in ((on_disk, RAS), (RAS, on_disk)))
        return orientations.apply_orientation(foreground_mask(orientations.apply_orientation(volume, there)), back)
    inner, box = _distance_from_air(volume)
    size = math.prod(volume.shape[:3])
    threshold = _otsu_threshold(inner, size)
    # Filled before the largest region is chosen: the scalp often does not touch the brain, but encloses it.
    bright = _filled(inner > threshold)
    noise = _noise(inner, ~_grown(bright, MARGIN_VOXELS), box, volume.shape[:3])
    tissue = inner > min(noise, threshold)
    # Opening separates noise from the tissue that it touches; without noise, it would only remove thin tissue.
    if noise > 0:
        tissue = ndimage.binary_opening(tissue, IN_PLANE)
    mask = np.zeros(volume.shape[:3], bool)
    mask[box] = _largest_region(_filled(tissue | bright))
    return mask


def scale_intensities(volume, mask, percentiles=(1, 99), affine=None):
    """Map two percentiles of each contrast inside the mask linearly to 0 and 1, and clip.

    Arguments and errors as for `intensity_ranges`.

    Returns:
        float32 in [0, 1], `(X, Y, Z, C)`; a contrast whose two percentiles are equal becomes 0.
    """
    return scale_between(volume, intensity_ranges(volume, mask, percentiles, affine))


def intensity_ranges(volume, mask, percentiles=(1, 99), affine=None):
    """Find the intensities that are mapped to 0 and 1.

    Args:
        volume: Intensities in any unit, `(X, Y, Z, C)`.
        mask: Given foreground, boolean `(X, Y, Z)`, with at least one voxel; None: each contrast's own
            foreground, so that its scaling does not depend on the other contrasts.
        percentiles: Lower and upper percentile, in [0, 100].
        affine: `(4, 4)`, to segment the foreground, as in `foreground_mask`.

    Returns:
        Lower and upper intensity of each contrast, in the unit of the volume, `(C, 2)` float64.

    Raises:
        InputError: For an empty mask, shapes that differ, or percentiles out of order.
    """
    check_axes("volume", volume.shape, "X Y Z C")
    low, high = percentiles
    if mask is not None:
        check_mask(mask, volume.shape)
    if not 0 <= low < high <= 100:
        raise InputError(f"percentiles: {low}, {high}; expected 0 <= lower < upper <= 100")
    ranges = np.empty((volume.shape[3], 2))
    for c in range(volume.shape[3]):
        inside = foreground_mask(volume[..., c : c + 1], affine) if mask is None else mask
        ranges[c] = np.percentile(volume[..., c][inside], percentiles)
    return ranges


def scale_between(volume, ranges):
    """Map the two intensities of each contrast in `ranges (C, 2)` linearly to 0 and 1, and clip.

    Args and Returns as for `scale_intensities`.
    """
    scaled = np.empty(volume.shape, np.float32)
    for c, (bottom, top) in enumerate(ranges):
        span = top - bottom
        if 0 < span < SMALLEST_SPAN:  # its inverse overflows 32-bit floats
            scaled[..., c] = np.clip((volume[..., c].astype(np.float64) - bottom) / span, 0, 1)
            continue
        np.subtract(volume[..., c], np.float32(bottom), out=scaled[..., c])
        scaled[..., c] *= np.float32(1 / span if span > 0 else 0)
    return np.clip(scaled, 0, 1, out=scaled)


def check_mask(mask, shape):
    """Raise InputError if a mask does not match the first three axes of a shape, or has no foreground voxel."""
    if mask.shape != tuple(shape[:3]):
        raise InputError(f"mask: shape {mask.shape} differs from the volume's {tuple(shape[:3])}")
    if not mask.any():
        raise InputError("mask: no foreground voxel; fix the mask, or leave it out to have it found in the images")


def _distance_from_air(volume):
    """Compute the mean over contrasts of |intensity - air|, each scaled to [0, 1] by its bright tissue.

    Returns the score inside a box, and the index ranges of the box: all voxels that differ from air, with an in-plane
    margin of `MARGIN_VOXELS` plus one voxel. Everything outside is air and touches nothing inside.
    """
    contrasts = np.moveaxis(volume, -1, 0)
    air = [np.float32(_air_level(contrast)) for contrast in contrasts]
    box = _box_around([contrast != level for contrast, level in zip(contrasts, air, strict=True)])
    score = np.zeros([end.stop - end.start for end in box], np.float32)
    for contrast, level in zip(contrasts, air, strict=True):
        distance = contrast[box] - level
        np.abs(distance, out=distance)
        bright = np.percentile(np.abs(contrast.flat[::STEP] - level), BRIGHT_PERCENTILE) or distance.max()
        if bright > 0:
            distance /= np.float32(bright)
            score += np.minimum(distance, 1, out=distance)
    score /= np.float32(len(air))
    return score, box


def _air_level(contrast):
    """Return the median of the four in-plane corners."""
    return np.median(corners_of(contrast))


def corners_of(contrast):
    """Return the voxels of a contrast `(X, Y, Z)` in the four in-plane corners, a tenth of each edge."""
    width, height = (max(1, size // 10) for size in contrast.shape[:2])
    ends = np.concatenate([contrast[:width], contrast[-width:]])
    return np.concatenate([ends[:, :height], ends[:, -height:]], axis=1)


def _box_around(masks):
    """Return the index ranges of the box that contains all masks `(X, Y, Z)`, with an in-plane margin."""
    columns = np.logical_or.reduce([mask.any(axis=2) for mask in masks])
    if not columns.any():
        raise InputError("no voxel differs from air in any contrast, so no foreground was found; give data.mask")
    ends = []
    for line in (columns.any(axis=1), columns.any(axis=0)):
        first, last = np.flatnonzero(line)[[0, -1]]
        ends.append(slice(max(first - MARGIN_VOXELS - 1, 0), min(last + MARGIN_VOXELS + 2, len(line))))
    slices = np.logical_or.reduce([mask[tuple(ends)].any(axis=(0, 1)) for mask in masks])
    first, last = np.flatnonzero(slices)[[0, -1]]
    return *ends, slice(first, last + 1)


def _grown(mask, voxels):
    """Compute `ndimage.binary_dilation(mask, IN_PLANE, voxels)`, ten times faster."""
    for _ in range(voxels):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask


def _noise(inner, outside, box, shape):
    """Return a score that air rarely exceeds; `outside` marks the air in the box."""
    if not ((inner > 0) & outside).any():
        return 0.0
    score, everywhere = np.zeros(shape, np.float32), np.ones(shape, bool)
    score[box], everywhere[box] = inner, outside
    return np.percentile(score[everywhere][::STEP], NOISE_PERCENTILE)


def _otsu_threshold(inner, size):
    """Return Otsu's threshold of the square root, so that bright fat does not mask all other tissue.

    `inner` is a part of a score with `size` voxels; the score is 0 outside it.
    """
    values = inner[inner > 0]  # often less than half of the voxels
    lowest = 0 if values.size < size else values.min()
    counts, edges = np.histogram(np.sqrt(values), HISTOGRAM_BINS, (np.sqrt(lowest), np.sqrt(values.max())))
    counts[0] += size - values.size
    centres = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(float)
    above = counts.sum() - below
    sum_below = np.cumsum(counts * centres)[:-1]
    sum_above = (counts * centres).sum() - sum_below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = np.nan_to_num(below * above * (sum_below / below - sum_above / above) ** 2)
    return edges[1 + np.argmax(between)] ** 2


def _largest_region(region):
    """Keep the largest face-connected part."""
    parts, number = ndimage.label(region)
    if number <= 1:
        return region
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == np.argmax(sizes)


def _filled(region):
    """Fill what a region encloses within each axial slice, which includes every hole enclosed in 3D."""
    parts, _ = ndimage.label(~region, IN_PLANE)
    reaches_edge = np.zeros(parts.max() + 1, bool)
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        reaches_edge[edge] = True
    reaches_edge[0] = False
    return ~reaches_edge[parts]
