"""Regression: restore the pixels of an image that noise has replaced."""

from keras import ops

from losses.similarity import Tensor
from utils.checks import InputError


def masked_l1(reconstruction: Tensor, image: Tensor, corrupted: Tensor) -> Tensor:
    """Compute the mean absolute error over the corrupted pixels of each image.

    loss = sum |M * reconstruction - M * image| / sum M, with M = 1 at corrupted pixels

    The paper writes the sum; the mean differs from it by the number of corrupted values, so that the loss
    does not depend on the image size (docs/deviations.md).

    Args:
        reconstruction: Output of the network, `(B, H, W[, D], C)`.
        image: The image before corruption, `(B, H, W[, D], C)`.
        corrupted: Which pixels were replaced, boolean or 0 and 1, `(B, H, W[, D], C)`, or with one channel for all
            contrasts of a pixel.

    Returns:
        Loss per image, `(B,)` float32; 0 for an image without corrupted pixels.

    Raises:
        InputError: For shapes that do not match.

    Reference:
        arXiv 2205.13109, Sec. II.B, second equation.
    """
    shapes = [tuple(tensor.shape) for tensor in (reconstruction, image, corrupted)]
    allowed = (shapes[1], (*shapes[1][:-1], 1))
    if shapes[0] != shapes[1] or len(shapes[1]) < 3 or shapes[2] not in allowed:
        raise InputError(
            f"masked_l1: reconstruction {shapes[0]}, image {shapes[1]} and corrupted {shapes[2]} must be equal, "
            "corrupted may have one channel"
        )
    reconstruction, image, weight = (ops.cast(tensor, "float32") for tensor in (reconstruction, image, corrupted))
    axes = tuple(range(1, len(shapes[1])))
    # Select instead of multiply: values outside the corrupted pixels, finite or not, must have no effect.
    error = ops.where(weight > 0, ops.abs(ops.where(weight > 0, reconstruction, image) - image), 0.0)
    count = ops.sum(weight, axis=axes) * (shapes[1][-1] // shapes[2][-1])
    return ops.sum(error, axis=axes) / ops.maximum(count, 1.0)
