"""Global contrast: representations of whole images that should agree or differ."""

from keras import ops

from losses.similarity import Tensor, unit_vectors
from utils.checks import InputError, check_axes

EXCLUDED = -1e9  # finite, so that a view without comparisons has a zero gradient


def simclr_loss(view_a: Tensor, view_b: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Compute NT-Xent: each view against its partner, among all other views of the batch.

    loss_i = -log( exp(s_ij / t) / sum_{k != i} exp(s_ik / t) ), j the other view of the same image, over all 2B - 1
    other views k; s is the cosine similarity.

    Args:
        view_a: Representations of the first views, `(B, F)`.
        view_b: Representations of the second views of the same images, `(B, F)`.
        temperature: Positive float t, dimensionless.

    Returns:
        Loss per view, `(2B,)` float32, first all of `view_a`, then all of `view_b`; 0 for a batch of one image.

    Raises:
        InputError: For shapes that differ, or a temperature that is not positive.

    Reference:
        Chen et al., ICML 2020, Eq. 1.
    """
    check_axes("view_a", view_a.shape, "B F")
    check_axes("view_b", view_b.shape, "B F", **_known(view_a.shape, "BF"))
    _check_temperature(temperature)
    images = ops.shape(view_a)[0]
    vectors = unit_vectors(ops.concatenate([view_a, view_b], axis=0))
    logits = ops.matmul(vectors, ops.transpose(vectors)) / temperature
    logits = logits + EXCLUDED * ops.eye(2 * images, dtype="float32")
    partner_logits = ops.diagonal(ops.roll(logits, -images, axis=1))
    return ops.logsumexp(logits, axis=-1) - partner_logits


def anatomical_contrastive_loss(
    views: Tensor, partitions: Tensor, *, temperature: float = 0.1, same_part_attracts: bool = False
) -> Tensor:
    """Compute global contrast in which slices of the same part of the anatomy never repel each other.

    For each ordered pair (i, j) of views of one slice, with n over all views of slices of other partitions:

        loss_ij = -log( exp(s_ij / t) / (exp(s_ij / t) + sum_n exp(s_in / t)) )

    With `same_part_attracts`, j runs over the other views of all slices of the same part.

    Args:
        views: Representations of V >= 2 views of each slice, `(V, B, F)`.
        partitions: Which part of its volume each slice comes from, integer `(B,)`.
        temperature: Positive float t, dimensionless.
        same_part_attracts: Whether the views of all slices of a part are positives of one another.

    Returns:
        Loss per slice, the mean over the ordered pairs whose first view is a view of it, `(B,)` float32; 0 for a slice
        without negatives.

    Raises:
        InputError: For shapes that do not match, a single view, or a temperature that is not positive.

    Reference:
        Chaitanya et al., NeurIPS 2020, Eq. 1 with the negatives of variant G^{D-}; with `same_part_attracts` the pairs
        of G^D too (their code pairs each slice with one of another volume; here, with all in the batch).
    """
    check_axes("views", views.shape, "V B F")
    check_axes("partitions", partitions.shape, "B", **_known(views.shape[1:2], "B"))
    _check_temperature(temperature)
    number = views.shape[0]
    if number < 2:
        raise InputError(f"views: {number} view of each slice; at least 2 are needed")
    vectors = unit_vectors(views)
    logits = ops.einsum("ibf,jcf->ibjc", vectors, vectors) / temperature
    partitions = ops.convert_to_tensor(partitions)
    is_same_part = ops.equal(partitions[:, None], partitions[None, :])
    is_negative = ops.logical_not(is_same_part)[None, :, None, :]
    negatives = ops.logsumexp(ops.where(is_negative, logits, EXCLUDED), axis=(2, 3))
    if same_part_attracts:
        is_self = ops.reshape(ops.eye(number * ops.shape(views)[1], dtype="float32"), ops.shape(logits))
        weight = ops.cast(is_same_part, "float32")[None, :, None, :] * (1.0 - is_self)
        cost = ops.softplus(negatives[:, :, None, None] - logits)
        return ops.sum(cost * weight, axis=(0, 2, 3)) / ops.sum(weight, axis=(2, 3))[0] / number
    pairs = ops.einsum("ibf,jbf->ijb", vectors, vectors) / temperature
    cost = ops.softplus(negatives[:, None, :] - pairs)
    is_pair = 1.0 - ops.eye(number, dtype="float32")[:, :, None]
    return ops.sum(cost * is_pair, axis=(0, 1)) / (number * (number - 1))


def _known(shape, axes):
    return {axis: size for axis, size in zip(axes, shape, strict=True) if size is not None}


def _check_temperature(temperature):
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}; it must be positive")
