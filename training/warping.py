"""Spatial changes of images and labels on the device: one displacement field for both, for slices and volumes."""

import itertools

import numpy as np
from keras import ops


def sampling_positions(affine, elastic, image_size):
    """Compute the input position of each output pixel.

    Args:
        affine: `(B, 2, 3)`, or `(B, 3, 4)` for volumes, from output to input pixels, around the image centre.
        elastic: `(B, h, w, 2)`, or `(B, h, w, d, 3)`, displacements at the nodes of a coarse grid, pixels;
            interpolated bicubically (tricubically).
        image_size: `(H, W)` or `(H, W, D)`.

    Returns:
        Row, column (and depth) of the input for every output pixel, `(B, H, W, 2)` or `(B, H, W, D, 3)`.
    """
    rank = len(image_size)
    centre = np.array([(size - 1) / 2 for size in image_size], "float32")
    grid = np.stack(np.meshgrid(*map(np.arange, image_size), indexing="ij"), -1).astype("float32") - centre
    axes = "hwd"[:rank]
    straight = ops.einsum(f"bij,{axes}j->b{axes}i", affine[:, :, :rank], ops.convert_to_tensor(grid))
    shift = ops.reshape(affine[:, :, rank], (-1, *(1,) * rank, rank)) + centre
    return straight + shift + upsample(elastic, image_size)


def upsample(field, image_size):
    """Interpolate displacements cubically, axis by axis, `(B, h, w[, d], rank)` to `(B, H, W[, D], rank)`.

    Implemented by gathers and sums, because `ops.image.resize` supports only two axes and XLA has no bicubic resize.
    """
    for axis, size in enumerate(image_size, start=1):
        index, weight = _cubic_weights(field.shape[axis], size)
        weight = weight.reshape(*weight.shape, *(1,) * (len(field.shape) - axis - 1))
        field = ops.sum(ops.take(field, index, axis=axis) * weight, axis=axis)
    return field


def _cubic_weights(nodes, size):
    """Return the four nodes for each pixel and their weights, `(4, size)` each; nodes outside have weight 0.

    Reference:
        Keys, IEEE Trans. Acoust. 1981, Eq. 15; pixels and nodes cover the same length (half-pixel centres).
    """
    place = (np.arange(size, dtype="float32") + 0.5) * (nodes / size) - 0.5
    first = np.floor(place)
    # In steps of 1/1024, as in TensorFlow's bicubic resize, so that the results are bit-identical.
    place_in_cell = np.rint((place - first) * 1024) / 1024.0
    taps = np.arange(-1, 3)[:, None]
    index = first.astype("int32") + taps
    distance = np.abs(place_in_cell - taps).astype("float64")
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    is_inside = (index >= 0) & (index < nodes)
    weight = np.where(is_inside, np.where(distance < 1, near, far), 0).astype("float32")
    return np.clip(index, 0, nodes - 1).astype("int32"), weight * (1 / weight.sum(0))


def warp(images, positions):
    """Read images at fractional positions by linear interpolation; zero outside the image.

    Args:
        images: `(B, H, W[, D], C)` float.
        positions: `(B, H, W[, D], 2 or 3)` rows, columns (and depths), pixels.

    Returns:
        `(B, H, W[, D], C)`.
    """
    corner = ops.floor(positions)
    fraction = positions - corner
    rank = positions.shape[-1]
    total = 0.0
    for step in itertools.product((0, 1), repeat=rank):
        value = _read(images, corner + np.array(step, "float32"))
        for axis, further in enumerate(step):
            share = fraction[..., axis : axis + 1]
            value = value * (share if further else 1 - share)
        total = total + value
    return total


def warp_labels(labels, positions):
    """Read integer labels at the nearest pixel; background outside. `(B, H, W[, D])` in, `(B, H, W[, D])` out."""
    return _read(labels[..., None], ops.floor(positions + 0.5))[..., 0]


def _read(images, positions):
    """Return the values at integer positions `(B, H, W[, D], 2 or 3)`, zero outside."""
    batch, *sizes, channels = ops.shape(images)
    place = ops.reshape(ops.arange(batch, dtype="int32"), (-1, *(1,) * len(sizes)))
    inside = True
    for axis, size in enumerate(sizes):
        index = ops.cast(positions[..., axis], "int32")
        inside = (index >= 0) & (index < size) & inside
        place = place * size + ops.clip(index, 0, size - 1)
    values = ops.take(ops.reshape(images, (-1, channels)), place, axis=0)
    return ops.where(inside[..., None], values, ops.zeros_like(values))
