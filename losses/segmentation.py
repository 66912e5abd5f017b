"""Losses for segmentation over a whole batch of slices or volumes: overlap by class, and cross-entropy.

Every overlap loss is a sum over classes of `weight * cost`. A class that is absent in target and prediction costs 0.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from losses.similarity import Tensor
from utils.checks import InputError

ABSENT = 1e-6  # pixels; a class with less than this in target and prediction together is absent
SMALLEST = 1e-7  # probability; the resolution of a softmax in float32
NEAR_PERFECT = 1e-7  # Tversky cost below which the focal power is replaced by its chord


def segmentation_loss(
    target: Tensor,
    probabilities: Tensor,
    *,
    name: str = "focal_tversky",
    class_weights: Sequence[float] | None = None,
    cross_entropy: str = "balanced",
    cross_entropy_weight: float = 0.0,
    **focal: Any,
) -> Tensor:
    """Compute the named loss, plus cross-entropy if its weight is not 0.

    Args:
        target: As for `focal_tversky_loss`.
        probabilities: As for `focal_tversky_loss`.
        name: `"focal_tversky"`, `"dice"` or `"cross_entropy"` alone.
        class_weights: K floats for the named loss, background first; None means all 1. The added cross-entropy is
            unweighted.
        cross_entropy: `"balanced"` or `"plain"`, for the named and for the added cross-entropy.
        cross_entropy_weight: Weight of the added cross-entropy.
        **focal: False positive and negative weight and focus of `focal_tversky_loss`; the other losses ignore them.

    Returns:
        Scalar float32, over the whole batch.

    Raises:
        InputError: For an unknown name, or arguments that the loss itself rejects.

    Reference:
        Umapathy et al., Med. Phys. 2024 (focal Tversky); arXiv 2205.13109, Sec. II.E (Dice). The sum with
        cross-entropy is ours.
    """
    kinds = {"balanced": balanced_cross_entropy, "plain": plain_cross_entropy}
    if cross_entropy not in kinds:
        raise InputError(f"cross_entropy is {cross_entropy!r}; choose from {', '.join(map(repr, kinds))}")
    added, tversky = kinds[cross_entropy], functools.partial(focal_tversky_loss, **focal)
    losses: dict[str, Callable] = {"focal_tversky": tversky, "dice": dice_loss, "cross_entropy": added}
    if name not in losses:
        raise InputError(f"segmentation loss is {name!r}; choose from {', '.join(map(repr, losses))}")
    loss = losses[name](target, probabilities, class_weights=class_weights)
    if cross_entropy_weight:
        loss = loss + cross_entropy_weight * added(target, probabilities)
    return loss


def dice_loss(
    target: Tensor,
    probabilities: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    include_background: bool = True,
    reduce: str = "batch",
) -> Tensor:
    """Compute sum_k w_k (1 - Dice_k), the multi-label soft Dice loss (Tversky with both weights 1/2).

    Arguments as for `focal_tversky_loss`.

    Reference:
        arXiv 2205.13109, Sec. II.E; Dice with plain, not squared, sums in the denominator.
    """
    cost = _tversky_cost(target, probabilities, 0.5, 0.5, reduce)
    return _sum_over_classes(cost, class_weights, include_background)


def tversky_loss(
    target: Tensor,
    probabilities: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    include_background: bool = True,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    reduce: str = "batch",
) -> Tensor:
    """Compute sum_k w_k (1 - TI_k). Arguments as for `focal_tversky_loss`.

    Reference:
        Salehi et al., MLMI 2017; weights 0.3 and 0.7 and the sum over classes as in the authors' code.
    """
    cost = _tversky_cost(target, probabilities, false_positive_weight, false_negative_weight, reduce)
    return _sum_over_classes(cost, class_weights, include_background)


def focal_tversky_loss(
    target: Tensor,
    probabilities: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    include_background: bool = True,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    focus: float = 4 / 3,
    reduce: str = "batch",
) -> Tensor:
    """Compute sum_k w_k (1 - TI_k)^(1 / focus), with TI_k = TP / (TP + a FP + b FN) of soft counts.

    For focus > 1, the slope of that power is infinite at a perfect class; below 1 - TI = 1e-7 it is replaced by the
    straight line to the origin, so that the gradient stays finite.

    Args:
        target: Class index, integer `(B, H, W[, D])`, or one-hot `(B, H, W[, D], K)`; the number of axes decides.
        probabilities: `(B, H, W[, D], K)` in [0, 1], after the softmax.
        class_weights: K floats w_k, background first; None means all 1.
        include_background: Whether class 0 counts.
        false_positive_weight: a.
        false_negative_weight: b.
        focus: Positive; 1 gives the Tversky loss.
        reduce: `"batch"` sums TP, FP and FN over the whole batch, `"image"` over each image.

    Returns:
        Scalar float32; `(B,)` with `reduce="image"`.

    Raises:
        InputError: For mismatched shapes or class weights, or an invalid focus.

    Reference:
        Abraham and Khan, ISBI 2019, Eq. 4 with gamma = focus = 4/3.
    """
    if focus <= 0:
        raise InputError(f"focus is {focus}; it must be positive")
    cost = _tversky_cost(target, probabilities, false_positive_weight, false_negative_weight, reduce)
    exponent = 1 / focus
    powered = ops.power(ops.maximum(cost, NEAR_PERFECT), exponent)
    chord = cost * NEAR_PERFECT ** (exponent - 1)
    return _sum_over_classes(ops.where(cost > NEAR_PERFECT, powered, chord), class_weights, include_background)


def balanced_cross_entropy(
    target: Tensor, probabilities: Tensor, *, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Compute the mean over classes of the mean over their pixels of -log(probability of the class).

    The Tversky index of a class that the network no longer predicts has no gradient; this cost has one, and it counts a
    small organ as much as the background. Classes absent from the target do not count.

    Args:
        target: As for `focal_tversky_loss`.
        probabilities: As for `focal_tversky_loss`; below 1e-7 they count as 1e-7, without a gradient.
        class_weights: K floats, background first: the mean over classes is weighted by them; None means all equal.

    Returns:
        Scalar float32, over the whole batch.

    Raises:
        InputError: For mismatched shapes or class weights.

    Reference:
        Ours; class-balanced cross-entropy as in Xie and Tu, ICCV 2015, for K classes.
    """
    costs, pixels = _log_costs(target, probabilities)
    weights = ops.convert_to_tensor(_weights(class_weights, costs.shape[-1])) * ops.cast(pixels > 0, "float32")
    return ops.sum(weights * costs / ops.maximum(pixels, 1.0)) / ops.maximum(ops.sum(weights), SMALLEST)


def plain_cross_entropy(
    target: Tensor, probabilities: Tensor, *, class_weights: Sequence[float] | None = None
) -> Tensor:
    """Compute the mean over pixels of -log(probability of the pixel's class): classes count in proportion to size.

    cost = sum_i w_k(i) * -log p_i,k(i) / sum_i w_k(i), with k(i) the class of pixel i

    Args:
        target: As for `focal_tversky_loss`.
        probabilities: As for `focal_tversky_loss`; below 1e-7 they count as 1e-7, without a gradient.
        class_weights: K floats w_k, background first: the mean over pixels is weighted by them; None means all equal.

    Returns:
        Scalar float32, over the whole batch.

    Raises:
        InputError: For mismatched shapes or class weights.

    Reference:
        Ronneberger et al., MICCAI 2015, Eq. 1, with weights by class, not by pixel, and the mean, not the sum.
    """
    costs, pixels = _log_costs(target, probabilities)
    weights = ops.convert_to_tensor(_weights(class_weights, costs.shape[-1]))
    return ops.sum(weights * costs) / ops.maximum(ops.sum(weights * pixels), SMALLEST)


def _log_costs(target, probabilities):
    """Return the sum of -log(probability) over the pixels of each class, and their number, `(K,)` each."""
    probabilities = ops.cast(probabilities, "float32")
    target = _one_hot(target, probabilities)
    axes = tuple(range(len(probabilities.shape) - 1))
    costs = -ops.sum(target * ops.log(ops.maximum(probabilities, SMALLEST)), axis=axes)
    return costs, ops.sum(target, axis=axes)


def _tversky_cost(target, probabilities, false_positive_weight, false_negative_weight, reduce):
    """Return 1 - TI per class, `(K,)` or `(B, K)`, computed without the cancellation of that difference."""
    if reduce not in ("batch", "image"):
        raise InputError(f"reduce is {reduce!r}; choose 'batch' or 'image'")
    probabilities = ops.cast(probabilities, "float32")
    target = _one_hot(target, probabilities)
    axes = tuple(range(0 if reduce == "batch" else 1, len(probabilities.shape) - 1))
    hits = ops.sum(target * probabilities, axis=axes)
    errors = false_positive_weight * ops.sum((1 - target) * probabilities, axis=axes)
    errors = errors + false_negative_weight * ops.sum(target * (1 - probabilities), axis=axes)
    is_absent = hits + errors < ABSENT
    return ops.where(is_absent, 0.0, errors / ops.where(is_absent, 1.0, hits + errors))


def _one_hot(target, probabilities):
    shape, expected = tuple(target.shape), tuple(probabilities.shape)
    if len(shape) == len(expected) - 1 and _agree(shape, expected[:-1]):
        return ops.one_hot(ops.cast(target, "int32"), expected[-1], dtype="float32")
    if len(shape) == len(expected) and _agree(shape, expected):
        return ops.cast(target, "float32")
    raise InputError(
        f"target: shape {shape} fits neither class indices {expected[:-1]} nor one-hot {expected} of the probabilities"
    )


def _agree(shape, expected):
    return all(None in sizes or sizes[0] == sizes[1] for sizes in zip(shape, expected, strict=True))


def _sum_over_classes(cost, class_weights, include_background):
    weights = _weights(class_weights, cost.shape[-1])
    if not include_background:
        weights = weights * (np.arange(cost.shape[-1]) > 0)
    return ops.sum(cost * ops.convert_to_tensor(weights, dtype="float32"), axis=-1)


def _weights(class_weights, classes):
    weights = np.ones(classes, "float32") if class_weights is None else np.asarray(class_weights, "float32")
    if weights.shape != (classes,):
        raise InputError(f"class_weights: {weights.size} weights for {classes} classes; the background has one as well")
    return weights
