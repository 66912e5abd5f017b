"""Intensity changes on the device, for slices and volumes; labels and targets are never changed.

Each image has its own random numbers, drawn in `training.augmentation`; the neutral number leaves it unchanged.
"""

import numpy as np
from keras import ops

from training.warping import upsample


def changed_intensities(images, batch):
    """Apply the intensity changes of a batch, in the order of image formation.

    Tissue (gamma), coil (bias field), resolution (blur, low resolution), receiver (noise), scaling (contrast and
    brightness).

    Args:
        images: `(B, H, W[, D], C)` in [0, 1].
        batch: Dictionary; `gamma`, `bias`, `blur`, `coarseness`, `noise`, and `brightness` with `contrast` are applied
            if present.

    Returns:
        Images of the same shape.
    """
    if "gamma" in batch:
        images = change_gamma(images, batch["gamma"])
    if "bias" in batch:
        images = apply_bias_field(images, batch["bias"])
    if "blur" in batch:
        images = blur(images, batch["blur"])
    if "coarseness" in batch:
        images = lower_resolution(images, batch["coarseness"])
    if "noise" in batch:
        images = images + batch["noise"]
    if "brightness" in batch:
        images = change_intensities(images, batch["brightness"], batch["contrast"])
    return images


def change_intensities(images, brightness, contrast):
    """Scale each image around its mean by `contrast (B,)` and shift it by `brightness (B,)`; `(B, H, W[, D], C)`."""
    axes = tuple(range(1, len(images.shape) - 1))
    mean = ops.mean(images, axis=axes, keepdims=True)
    scale, shift = (_per_image(value, images) for value in (contrast, brightness))
    return (images - mean) * scale + mean + shift


def change_gamma(images, gamma):
    """Raise images in [0, 1] to the power `gamma (B,)`: below 1 brightens, above 1 darkens; 0 and 1 are unchanged."""
    gamma = _per_image(gamma, images)
    return ops.where(gamma == 1, images, ops.power(ops.maximum(images, 0.0), gamma))


def apply_bias_field(images, bias):
    """Multiply images by a smooth field, one for all contrasts.

    Args:
        images: `(B, H, W[, D], C)`.
        bias: Logarithm of the field at the nodes of a coarse grid, `(B, h, w[, d], 1)`, interpolated cubically.
    """
    return images * ops.exp(upsample(bias, images.shape[1:-1]))


def blur(images, sd):
    """Blur images in the plane of their slices with a Gaussian, normalised over the pixels inside.

    Args:
        images: `(B, H, W[, D], C)`.
        sd: Standard deviation, pixels, `(B,)`; 0: unchanged.
    """
    # A width far below a pixel, for which the weights of all neighbours underflow to 0.
    width = ops.reshape(ops.maximum(sd, 1e-3), (-1, 1, 1))

    def weights(size):
        places = np.arange(size, dtype="float32")
        matrix = ops.exp(-0.5 * ops.square((places[:, None] - places) / width))
        return matrix / ops.sum(matrix, axis=-1, keepdims=True)

    return ops.where(_per_image(sd, images) == 0, images, _along_rows_and_columns(images, weights))


def lower_resolution(images, coarseness):
    """Simulate an acquisition with larger pixels: means over each, interpolated linearly back to the original pixels.

    The pixels are enlarged in the plane of the slices, starting at the first row and column; at the end of an axis they
    may extend beyond the image and then hold the mean of the pixels inside.

    Args:
        images: `(B, H, W[, D], C)`.
        coarseness: Edge of a large pixel in original pixels, `(B,)`, at least 1; 1: unchanged.
    """
    edge = ops.reshape(coarseness, (-1, 1, 1))

    def means(size):
        small = np.arange(size, dtype="float32")
        large = small[:, None] * edge
        inside = ops.minimum(large + edge, small + 1) - ops.maximum(large, small)
        share = ops.maximum(inside, 0.0)
        return share / ops.maximum(ops.sum(share, axis=-1, keepdims=True), 1e-6)

    def back(size):
        large = np.arange(size, dtype="float32")
        last = ops.ceil(size / edge - 1e-3) - 1
        places = ops.clip((large[:, None] + 0.5) / edge - 0.5, 0.0, last)
        return ops.maximum(1 - ops.abs(places - large), 0.0)

    coarse = _along_rows_and_columns(_along_rows_and_columns(images, means), back)
    return ops.where(_per_image(coarseness, images) == 1, images, coarse)


def _along_rows_and_columns(images, weights):
    """Multiply rows, then columns of images `(B, H, W[, D], C)` by `weights(size)`, `(B, size, size)`."""
    _, rows, columns, *rest = images.shape
    changed = ops.einsum("bij,bjk->bik", weights(rows), ops.reshape(images, (-1, rows, columns * int(np.prod(rest)))))
    changed = ops.reshape(changed, (-1, rows, columns, int(np.prod(rest))))
    changed = ops.einsum("bij,bhjk->bhik", weights(columns), changed)
    return ops.reshape(changed, (-1, rows, columns, *rest))


def _per_image(values, images):
    """Reshape one value per image `(B,)` for broadcasting with images `(B, H, W[, D], C)`."""
    return ops.reshape(values, (-1, *(1,) * (len(images.shape) - 1)))
