"""Similarity of synthesised and acquired contrasts: MSE, PSNR and SSIM, over the volume and inside a mask.

Conventions, the same in every table and figure:

- every value refers to a data range that the caller provides and the row repeats (1 for images scaled to [0, 1]);
- SSIM is three-dimensional, with Wang's Gaussian window (sigma 1.5, 11 voxels wide) in voxels of any size;
- without a mask, the columns `*_mask` are None; with an empty one, they are NaN, to be counted, never dropped;
- a synthesis without any error has an infinite PSNR.
"""

import math

import numpy as np

from utils.checks import InputError

SIGMA = 1.5  # voxels
REACH = 5  # voxels from the centre to the edge of the window
MEASURES = ("mse", "psnr_db", "ssim")


def score_synthesis(prediction, reference, contrasts, *, data_range, mask=None):
    """Score the synthesised contrasts of one subject, one row per contrast.

    Args:
        prediction: Synthesised contrasts, `(X, Y, Z, C)` float.
        reference: Acquired contrasts on the same grid, `(X, Y, Z, C)` float.
        contrasts: C names, in the order of the channels.
        data_range: Largest minus smallest possible value: one number, or one per contrast, by name.
        mask: The voxels of the head or organ, boolean `(X, Y, Z)`, or None.

    Returns:
        List of dicts in the order of the contrasts, with the keys `label` (the contrast), `data_range`, `mse`,
        `psnr_db`, `ssim`, and `mse_mask`, `psnr_db_mask`, `ssim_mask` for the voxels of the mask; NaN, None and
        infinity as described in the docstring of this module.

    Raises:
        InputError: For mismatched shapes, a data range that is missing or not positive, or values that are not finite.

    Reference:
        The three measures of the poster, which does not state over which voxels and in which units.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    ranges = data_range if isinstance(data_range, dict) else dict.fromkeys(contrasts, data_range)
    mask = None if mask is None else np.asarray(mask, bool)
    _check(prediction, reference, contrasts, ranges, mask)
    rows = []
    for channel, contrast in enumerate(contrasts):
        predicted, true = (np.asarray(volume[..., channel], np.float64) for volume in (prediction, reference))
        rows.append({"label": contrast, "data_range": float(ranges[contrast])})
        rows[-1] |= _measures(predicted, true, float(ranges[contrast]), mask)
    return rows


def psnr_db(mse, data_range):
    """Return the peak signal-to-noise ratio 10 log10(data_range^2 / mse), dB; infinite without error, NaN for NaN."""
    if mse == 0:
        return math.inf
    return 20 * math.log10(data_range) - 10 * math.log10(mse)


def ssim_map(predicted, true, data_range):
    """Compute the structural similarity at every voxel, `(X, Y, Z)`; the volume is mirrored at the border.

    Reference:
        Wang et al., IEEE Trans. Image Process. 2004, by scikit-image, with population variances as there.
    """
    # Deferred, because training processes never need it.
    from skimage.metrics import structural_similarity

    # With Gaussian weights, the width only determines the truncation, and thin volumes have fewer than 11 voxels.
    width = min(2 * REACH + 1, *(size - 1 + size % 2 for size in true.shape))
    return structural_similarity(
        predicted,
        true,
        win_size=width,
        data_range=data_range,
        gaussian_weights=True,
        sigma=SIGMA,
        use_sample_covariance=False,
        full=True,
    )[1]


def _measures(predicted, true, data_range, mask):
    """Compute all six measures of one contrast; the SSIM of the volume is the mean over voxels whose window fits.

    Along an axis of fewer than 11 voxels, no window fits, so all voxels count.
    """
    squared, similarity = (predicted - true) ** 2, ssim_map(predicted, true, data_range)
    inner = tuple(slice(REACH, size - REACH) if size > 2 * REACH else slice(None) for size in true.shape)
    mse = float(squared.mean())
    values = (mse, psnr_db(mse, data_range), float(similarity[inner].mean()))
    row = dict(zip(MEASURES, values, strict=True)) | dict.fromkeys(f"{name}_mask" for name in MEASURES)
    if mask is not None:
        inside = [float(volume[mask].mean()) if mask.any() else math.nan for volume in (squared, similarity)]
        row |= {"mse_mask": inside[0], "psnr_db_mask": psnr_db(inside[0], data_range), "ssim_mask": inside[1]}
    return row


def _check(prediction, reference, contrasts, ranges, mask):
    if prediction.shape != reference.shape or prediction.ndim != 4 or 0 in prediction.shape:
        raise InputError(
            f"prediction is {prediction.shape} but the reference is {reference.shape}; "
            "both must be (X, Y, Z, contrasts) on one grid"
        )
    if prediction.shape[-1] != len(contrasts):
        raise InputError(f"prediction: {prediction.shape[-1]} channels for the contrasts {', '.join(contrasts)}")
    if mask is not None and mask.shape != prediction.shape[:3]:
        raise InputError(f"mask is {mask.shape} but the volumes are {prediction.shape[:3]}; they must share one grid")
    for contrast in contrasts:
        if not ranges.get(contrast, 0) > 0 or not math.isfinite(ranges[contrast]):
            raise InputError(f"data_range of '{contrast}' is {ranges.get(contrast)}; give a positive number")
    for name, volume in (("prediction", prediction), ("reference", reference)):
        broken = volume.size - int(np.isfinite(volume).sum())
        if broken:
            raise InputError(f"{name}: {broken} values are not finite; nothing can be scored")
