"""Random changes of training slices: one displacement field for image and label.

Everything random is drawn on the host, with numpy from a named seed, and travels with the batch as a few small
arrays; the device only computes. So an epoch is the same on every backend, and a resumed run continues with the
numbers it would have had.
"""

import numpy as np
from keras import ops


def draw_changes(
    count,
    image_size,
    generator,
    *,
    translation=0.0,
    rotation_degrees=0.0,
    scale=(1.0, 1.0),
    elastic_px=0.0,
    elastic_grid=8,
    brightness=0.0,
    contrast=0.0,
):
    """Draw the random numbers of `count` augmented slices.

    Args:
        count: Number of slices B.
        image_size: `(H, W)`, pixels.
        generator: numpy random generator.
        translation: Largest shift of the field of view, share of the image size.
        rotation_degrees: Largest rotation, degrees.
        scale: Smallest and largest share of the field of view that fills the image (below 1 enlarges).
        elastic_px: Standard deviation of the displacements at the nodes of the coarse grid, pixels.
        elastic_grid: Distance of those nodes, pixels.
        brightness: Largest shift, in units of the [0, 1] image.
        contrast: Largest relative change of contrast about the slice's mean.

    Returns:
        Dictionary of float32 arrays: `affine (B, 2, 3)` from output to input pixels about the image centre,
        `elastic (B, h, w, 2)` in pixels, `brightness (B,)`, `contrast (B,)`.

    Reference:
        arXiv 2205.13109, Sec. II.E names translation, crop and elastic deformation; sizes are ours.
    """
    height, width = image_size
    angle = np.radians(generator.uniform(-rotation_degrees, rotation_degrees, count))
    zoom = generator.uniform(*scale, count)
    shift = generator.uniform(-translation, translation, (count, 2)) * [height, width]
    cosine, sine = zoom * np.cos(angle), zoom * np.sin(angle)
    rotation = np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], 1)
    nodes = (max(2, round(height / elastic_grid) + 1), max(2, round(width / elastic_grid) + 1))
    changes = {
        "affine": np.concatenate([rotation, shift[..., None]], -1),
        "elastic": generator.normal(0.0, elastic_px, (count, *nodes, 2)),
        "brightness": generator.uniform(-brightness, brightness, count),
        "contrast": generator.uniform(1 - contrast, 1 + contrast, count),
    }
    return {name: values.astype("float32") for name, values in changes.items()}


def sampling_positions(affine, elastic, image_size):
    """Say where in the input each output pixel is read.

    Args:
        affine: `(B, 2, 3)`, from output to input pixels, about the image centre.
        elastic: `(B, h, w, 2)` displacements at the nodes of a coarse grid, pixels; interpolated bicubically.
        image_size: `(H, W)`.

    Returns:
        Row and column of the input for every output pixel, `(B, H, W, 2)`.
    """
    height, width = image_size
    centre = np.array([(height - 1) / 2, (width - 1) / 2], "float32")
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).astype("float32") - centre
    straight = ops.einsum("bij,hwj->bhwi", affine[:, :, :2], ops.convert_to_tensor(grid))
    shift = ops.reshape(affine[:, :, 2], (-1, 1, 1, 2)) + centre
    bent = ops.image.resize(elastic, (height, width), interpolation="bicubic", data_format="channels_last")
    return straight + shift + bent


def warp(images, positions):
    """Read images at fractional positions by linear interpolation; zero outside the image.

    Args:
        images: `(B, H, W, C)` float.
        positions: `(B, H, W, 2)` rows and columns, pixels.

    Returns:
        `(B, H, W, C)`.
    """
    corner = ops.floor(positions)
    fraction = positions - corner
    total = 0.0
    for down in (0, 1):
        for right in (0, 1):
            share_down = fraction[..., :1] if down else 1 - fraction[..., :1]
            share_right = fraction[..., 1:] if right else 1 - fraction[..., 1:]
            total = total + _read(images, corner + np.array([down, right], "float32")) * share_down * share_right
    return total


def warp_labels(labels, positions):
    """Read integer labels at the nearest pixel; background outside the image. `(B, H, W)` in, `(B, H, W)` out."""
    return _read(labels[..., None], ops.floor(positions + 0.5))[..., 0]


def _read(images, positions):
    """Values at whole positions `(B, H, W, 2)`, zero outside."""
    batch, height, width, channels = ops.shape(images)
    row, column = ops.cast(positions[..., 0], "int32"), ops.cast(positions[..., 1], "int32")
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    first = ops.reshape(ops.arange(batch, dtype="int32") * height * width, (-1, 1, 1))
    place = first + ops.clip(row, 0, height - 1) * width + ops.clip(column, 0, width - 1)
    values = ops.take(ops.reshape(images, (-1, channels)), place, axis=0)
    return ops.where(inside[..., None], values, ops.zeros_like(values))


def change_intensities(images, brightness, contrast):
    """Scale each slice about its mean by `contrast (B,)` and shift it by `brightness (B,)`; `(B, H, W, C)`."""
    mean = ops.mean(images, axis=(1, 2), keepdims=True)
    return (images - mean) * ops.reshape(contrast, (-1, 1, 1, 1)) + mean + ops.reshape(brightness, (-1, 1, 1, 1))
