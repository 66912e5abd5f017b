"""Cosine similarity, which all contrastive losses here are based on."""

from typing import Any

from keras import ops

Tensor = Any  # a tensor of the backend, or a numpy array, which Keras accepts instead

SHORTEST = 1e-16  # squared length; below it a vector counts as zero and keeps a zero gradient


def unit_vectors(vectors: Tensor) -> Tensor:
    """Divide vectors by their length, in float32.

    Args:
        vectors: `(..., F)`.

    Returns:
        `(..., F)` float32 of length 1; 0, with zero gradient, for vectors shorter than 1e-8.
    """
    vectors = ops.cast(vectors, "float32")
    squares = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    is_zero = squares < SHORTEST
    # The inner `where` keeps the gradient of the unused branch finite.
    return vectors * ops.where(is_zero, 0.0, ops.rsqrt(ops.where(is_zero, 1.0, squares)))
