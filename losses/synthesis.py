"""Losses for contrast synthesis: differences between synthesised and acquired contrasts.

The poster does not name its loss, so every choice here is ours: L1 (the usual choice in the field), the mean squared
error, which is one of the poster's three measures, and L1 with the structural similarity, which is another.
"""

import numpy as np
from keras import ops

from losses.similarity import Tensor
from utils.checks import InputError

WINDOW = 11  # voxels; width of the Gaussian of Wang et al.
SIGMA = 1.5  # voxels
K1, K2 = 0.01, 0.03
NAMES = ("l1", "mse", "l1_ssim")


def synthesis_loss(
    target: Tensor,
    prediction: Tensor,
    *,
    name: str = "l1",
    ssim_weight: float = 1.0,
    mask: Tensor | None = None,
    data_range: float = 1.0,
) -> Tensor:
    """Compute the loss of synthesised contrasts, the mean over contrasts and voxels of each image.

    l1: |p - t|    mse: (p - t)^2    l1_ssim: |p - t| + ssim_weight (1 - SSIM)

    Args:
        target: Acquired contrasts, `(B, H, W[, D], C)`.
        prediction: Synthesised contrasts, `(B, H, W[, D], C)`.
        name: `"l1"`, `"mse"` or `"l1_ssim"`.
        ssim_weight: Weight of 1 - SSIM, not negative.
        mask: Voxels that count, boolean or 0 and 1, `(B, H, W[, D])`, optionally with a channel axis of 1; None: all.
        data_range: Largest minus smallest possible value; used by the SSIM only.

    Returns:
        Loss per image, `(B,)` float32; 0 for an image whose mask is empty.

    Raises:
        InputError: For an unknown name, a negative weight, or mismatched shapes.

    Reference:
        Umapathy et al., "Learning contrast synthesis in MRI using a constrained contrastive learning approach"
        (poster), states no loss: ours.
    """
    if name not in NAMES:
        raise InputError(f"synthesis loss is {name!r}; choose from {', '.join(map(repr, NAMES))}")
    if ssim_weight < 0:
        raise InputError(f"ssim_weight is {ssim_weight}; it must not be negative")
    if name == "mse":
        return mse_loss(target, prediction, mask=mask)
    loss = l1_loss(target, prediction, mask=mask)
    if name == "l1":
        return loss
    return loss + ssim_weight * ssim_loss(target, prediction, mask=mask, data_range=data_range)


def l1_loss(target: Tensor, prediction: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the mean absolute error per image, `(B,)`. Arguments as for `synthesis_loss`."""
    target, prediction, mask = _checked(target, prediction, mask)
    return _mean(ops.abs(_inside(prediction, target, mask) - target), mask)


def mse_loss(target: Tensor, prediction: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Compute the mean squared error per image, `(B,)`. Arguments as for `synthesis_loss`."""
    target, prediction, mask = _checked(target, prediction, mask)
    return _mean(ops.square(_inside(prediction, target, mask) - target), mask)


def ssim_loss(target: Tensor, prediction: Tensor, *, mask: Tensor | None = None, data_range: float = 1.0) -> Tensor:
    """Compute 1 - the mean structural similarity per image, over the similarities of the contrasts.

    SSIM = (2 m_t m_p + c1) (2 v_tp + c2) / ((m_t^2 + m_p^2 + c1) (v_t + v_p + c2)),
    with local means m, variances v and covariance v_tp under a Gaussian window of sigma 1.5, 11 wide along each of
    the two or three axes, c1 = (0.01 data_range)^2 and c2 = (0.03 data_range)^2.

    The mean is taken over the voxels whose window lies within the image, as in Wang et al.; with a mask, only over
    those inside it, whose windows reach up to five voxels beyond it. Along an axis of fewer than 11 voxels, the window
    is as wide as the largest odd number that fits.

    Args:
        target: As for `synthesis_loss`.
        prediction: As for `synthesis_loss`.
        mask: As for `synthesis_loss`.
        data_range: As for `synthesis_loss`; much larger values lose precision.

    Returns:
        Loss per image, `(B,)` float32, in [0, 2]; 0 where no voxel counts.

    Raises:
        InputError: For a data range that is not positive, or mismatched shapes.

    Reference:
        Wang et al., IEEE Trans. Image Process. 2004, Eq. 13; population, not sample, variances, as there.
    """
    if data_range <= 0:
        raise InputError(f"data_range is {data_range}; it must be positive")
    target, prediction, mask = _checked(target, prediction, mask)
    sizes = target.shape[1:-1]
    widths = [min(WINDOW, size - 1 + size % 2) for size in sizes]
    if mask is not None:
        inner = (slice(w // 2, size - w // 2) for w, size in zip(widths, sizes, strict=True))
        mask = mask[(slice(None), *inner)]
    return _mean(1.0 - _similarity(target, prediction, widths, data_range), mask)


def _similarity(target, prediction, widths, data_range):
    """SSIM of each contrast at the voxels whose window lies within the image, `(B, h, w[, d], C)`."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    moments = [target, prediction, target * target, prediction * prediction, target * prediction]
    contrasts = target.shape[-1]
    means = _local_means(ops.concatenate(moments, axis=-1), widths)
    mean_t, mean_p, square_t, square_p, product = (
        means[..., place * contrasts : (place + 1) * contrasts] for place in range(len(moments))
    )
    mean_tp, mean_squares = mean_t * mean_p, mean_t * mean_t + mean_p * mean_p
    luminance = (2 * mean_tp + c1) / (mean_squares + c1)
    return luminance * (2 * (product - mean_tp) + c2) / (square_t + square_p - mean_squares + c2)


def _local_means(images, widths):
    """Means under the Gaussian window, axis by axis and channel by channel, where the window fits.

    Computed as sums of shifted images: on recent GPUs, convolutions and matrix products round their factors to ten bits
    (TF32), and this error exceeds the variance of smooth tissue.
    """
    for axis, width in enumerate(widths, start=1):
        kept, half = images.shape[axis] - width + 1, width // 2
        weights = np.exp(-0.5 * (np.arange(-half, half + 1) / SIGMA) ** 2)
        weights /= weights.sum()
        shifted = [images[(slice(None),) * axis + (slice(first, first + kept),)] for first in range(width)]
        total = float(weights[half]) * shifted[half]
        for place in range(half):
            total = total + float(weights[place]) * (shifted[place] + shifted[width - 1 - place])
        images = total
    return images


def _inside(prediction, target, mask):
    """Return the prediction, replaced by the target outside the mask, so that values there have no effect."""
    return prediction if mask is None else ops.where(mask > 0, prediction, target)


def _mean(cost, mask):
    """Return the mean of `(B, ..., C)` per image over the voxels of a mask `(B, ..., 1)`, or over all."""
    axes = tuple(range(1, len(cost.shape)))
    if mask is None:
        return ops.mean(cost, axis=axes)
    count = ops.sum(mask, axis=axes) * cost.shape[-1]
    return ops.sum(ops.where(mask > 0, cost, 0.0), axis=axes) / ops.maximum(count, 1.0)


def _checked(target, prediction, mask):
    """Return the tensors in float32, the mask as 0 and 1 with one channel, or raise InputError."""
    shapes = tuple(target.shape), tuple(prediction.shape)
    if len(shapes[0]) not in (4, 5) or not _agree(*shapes):
        raise InputError(f"synthesis: target {shapes[0]} and prediction {shapes[1]} must be equal (B, H, W[, D], C)")
    target, prediction = ops.cast(target, "float32"), ops.cast(prediction, "float32")
    if mask is None:
        return target, prediction, None
    shape, image = tuple(mask.shape), shapes[0][:-1]
    if not (_agree(shape, image) or _agree(shape, (*image, 1))):
        raise InputError(f"synthesis: mask {shape} does not fit the target {shapes[0]}; it has one channel at most")
    mask = ops.cast(mask, "float32")
    return target, prediction, ops.expand_dims(mask, -1) if len(shape) == len(image) else mask


def _agree(shape, expected):
    pairs = zip(shape, expected, strict=False)
    return len(shape) == len(expected) and all(None in sizes or sizes[0] == sizes[1] for sizes in pairs)
