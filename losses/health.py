"""Health of representations: whether positives agree and all others differ.

None of these values is a training loss. They are measured on the fixed validation images, for the training log. All
use directions only, in float32; a zero vector has no direction and stays at the origin.
"""

from keras import ops

from losses.similarity import Tensor, unit_vectors
from utils.checks import InputError

SHARPNESS = 2.0  # t of the Gaussian potential in `uniformity`


def view_health(view_a: Tensor, view_b: Tensor, is_counted: Tensor | None = None) -> dict[str, Tensor]:
    """Describe two views of the same images, or of the same regions of images.

    Args:
        view_a: Representations of the first views, `(..., N, F)`; every N vectors form one set.
        view_b: Representations of the second views, same shape.
        is_counted: Boolean `(..., N)`, False where there is no image or region; None: all count.

    Returns:
        A dict of float32 scalars: `alignment`, the mean squared distance of the two views on the unit sphere, in
        [0, 4], 0 if nothing is counted; `uniformity` and `feature_spread`, each the mean over both views.

    Raises:
        InputError: For shapes that do not match.

    Reference:
        Alignment: Wang & Isola, ICML 2020, Sec. 4.1, alpha = 2.
    """
    _check_alike("view_b", view_b.shape, view_a.shape)
    views = unit_vectors(ops.stack([view_a, view_b]))
    weight = _weight(views[0], is_counted)
    return {
        "alignment": masked_mean(ops.sum(ops.square(views[0] - views[1]), axis=-1), weight),
        "uniformity": uniformity(views, ops.stack([weight, weight])),
        "feature_spread": feature_spread(views, ops.stack([weight, weight])),
    }


def uniformity(vectors: Tensor, is_counted: Tensor | None = None) -> Tensor:
    """Measure how evenly the vectors of a set cover the unit sphere.

    log( mean over all pairs i != j of exp(-t |u_i - u_j|^2) ), u unit vectors, t = 2

    It is 0 if all point in the same direction and about -4 if they are uniformly distributed; a few vectors that repel
    one another reach lower values, two opposite ones -8.

    Args:
        vectors: `(..., N, F)`, one set for each of the leading axes; pairs are formed within a set only.
        is_counted: Boolean `(..., N)`; None: all count.

    Returns:
        Mean over the sets with a pair, float32 scalar in [-8, 0]; 0 without any pair.

    Raises:
        InputError: If the shape of `is_counted` does not match.

    Reference:
        Wang & Isola, ICML 2020, Sec. 4.1; mean over two views as in the authors' code.
    """
    vectors = unit_vectors(vectors)
    weight = _weight(vectors, is_counted)
    squares = ops.sum(ops.square(vectors), axis=-1)
    products = ops.matmul(vectors, ops.swapaxes(vectors, -1, -2))
    distances = ops.maximum(squares[..., :, None] + squares[..., None, :] - 2 * products, 0.0)
    is_pair = weight[..., :, None] * weight[..., None, :] * (1 - ops.eye(ops.shape(vectors)[-2], dtype="float32"))
    has_pair = ops.any(is_pair > 0, axis=(-2, -1))
    # Squared distances are in [0, 4]: neither the exponential nor its logarithm can overflow.
    potential = masked_mean(ops.exp(-SHARPNESS * distances), is_pair, axis=(-2, -1))
    return masked_mean(ops.log(ops.where(has_pair, potential, 1.0)), has_pair)


def feature_spread(vectors: Tensor, is_counted: Tensor | None = None) -> Tensor:
    """Measure how much the unit vectors of a set differ: the standard deviation of a feature, times sqrt(F).

    It is 1 for isotropic directions and 0 if all point in the same direction. If all features vary equally, the mean
    cosine similarity of two vectors is 1 - spread^2. Vectors that are parallel or antiparallel count as spread;
    `uniformity` distinguishes these.

    Args:
        vectors: `(..., N, F)`, one set for each of the leading axes.
        is_counted: Boolean `(..., N)`; None: all count.

    Returns:
        Mean over features and over the sets with two vectors or more, float32 scalar in [0, 1]; 0 without such a set.

    Raises:
        InputError: If the shape of `is_counted` does not match.

    Reference:
        Chen & He, CVPR 2021, Sec. 4.1, where it is not multiplied by sqrt(F).
    """
    vectors = unit_vectors(vectors)
    weight = _weight(vectors, is_counted)
    counted = ops.broadcast_to(weight[..., None], ops.shape(vectors))
    mean = masked_mean(vectors, counted, axis=-2)
    variance = masked_mean(ops.square(vectors - mean[..., None, :]), counted, axis=-2)
    spread = ops.mean(ops.sqrt(variance), axis=-1) * vectors.shape[-1] ** 0.5
    return masked_mean(spread, ops.sum(weight, axis=-1) > 1)


def masked_mean(values, mask, axis=None):
    """Average the values that a mask of the same shape selects, in float32; 0 where it selects none."""
    weight = ops.cast(mask, "float32")
    total = ops.sum(ops.cast(values, "float32") * weight, axis=axis)
    return total / ops.maximum(ops.sum(weight, axis=axis), 1.0)


def _weight(vectors, is_counted):
    """Weight 1 or 0 of each vector, `(..., N)` float32."""
    if is_counted is None:
        return ops.ones_like(vectors[..., 0])
    _check_alike("is_counted", is_counted.shape, vectors.shape[:-1])
    return ops.cast(is_counted, "float32")


def _check_alike(name, shape, expected):
    """Raise InputError if the known sizes of two shapes differ."""
    sizes = zip(shape, expected, strict=False)
    if len(shape) != len(expected) or any(len({*pair} - {None}) > 1 for pair in sizes):
        raise InputError(f"{name}: shape {tuple(shape)}, expected {tuple(expected)}")
