"""Cosine similarity, the measure of all contrastive losses here."""

from keras import ops

SHORTEST = 1e-16  # squared length; shorter vectors count as zero and have a zero gradient


def unit_vectors(vectors):
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
