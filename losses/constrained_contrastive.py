"""Constrained local contrast: patches of one constraint class attract, similar patches of other classes repel.

For each anchor, the patches of the same slice with the most similar representations are found. Those that share the
anchor's class in the constraint map are its positives, the others its negatives (Umapathy et al. 2024).
"""

from typing import Any, NamedTuple

from keras import ops

from losses.health import masked_mean, uniformity
from losses.similarity import Tensor, unit_vectors
from utils.checks import InputError, check_axes

EXCLUDED = -1e9  # finite, so that an anchor without comparisons has a zero gradient
ROUNDING = 1e-5  # rounding error of squared distances in float32: a patch exactly at the limit counts as within it
FIRST = 4.0  # above every cosine similarity, so that the anchor sorts before all other patches


class Selection(NamedTuple):
    """Which patches an anchor is compared with; the loss and the health of the anchors must use the same settings.

    Attributes:
        nearest_patches: One integer, or one per slice; None if every batch brings its own. See the loss.
        most_nearest: Upper limit of `nearest_patches`; see the loss.
        positions: Where the patches lie, `(P, axes)`.
        positive_within: Largest distance of a positive, in the unit of `positions`.
    """

    nearest_patches: Any
    most_nearest: int | None = None
    positions: Any = None
    positive_within: float | None = None


def constrained_contrastive_loss(
    representations: Tensor,
    patch_classes: Tensor,
    anchors: Tensor,
    *,
    temperature: float = 0.1,
    nearest_patches: Any = 100,
    comparison: str = "pairwise",
    anchor_is_positive: bool = True,
    most_nearest: int | None = None,
    positions: Tensor | None = None,
    positive_within: float | None = None,
) -> Tensor:
    """Compute the constrained contrastive loss of each slice, the mean over its anchors.

    With cosine similarity s between anchor and patch, t the temperature, p positives and n negatives:

        pairwise = mean_p -log( exp(s_p / t) / (exp(s_p / t) + sum_n exp(s_n / t)) )
        setwise = -log( sum_p exp(s_p / t) / (sum_p exp(s_p / t) + sum_n exp(s_n / t)) )

    An anchor without positives or without negatives costs 0 and counts in the mean. A zero representation is
    dissimilar (s = 0) to everything and has no gradient.

    Args:
        representations: `(B, P, F)`, of any norm; only directions are compared, in float32.
        patch_classes: Class of each patch in the constraint map, integer `(B, P)`; the background is a class too.
            Patches of a negative class are not compared with anything.
        anchors: Patch index of each anchor, integer `(B, A)`, in [0, P); -1 where a slice has fewer anchors.
        temperature: Positive float, dimensionless.
        nearest_patches: Number of patches compared with the anchor, besides itself; all of them if there are fewer.
            One number, or one per slice, integer `(B,)`; 0 leaves only the anchor.
        most_nearest: With one number per slice: an upper limit, known before any batch is drawn, to which larger
            numbers are clipped. None: all patches.
        positions: Positions of the patches, `(P, axes)`; required with `positive_within`.
        positive_within: Largest distance of a positive from the anchor, in the unit of `positions`. Nearest patches of
            the anchor's class that lie farther away are neither positive nor negative. None: any distance.
        comparison: `"pairwise"` or `"setwise"`.
        anchor_is_positive: Count the anchor among its own positives, as the authors' code does.

    Returns:
        Loss per slice, `(B,)` float32; 0 for a slice without anchors.

    Raises:
        InputError: For shapes that do not match, or an invalid setting.

    Reference:
        Umapathy et al., Med. Phys. 2024;51:2707; the selection follows the authors' code.
    """
    if comparison not in ("pairwise", "setwise"):
        raise InputError(f"comparison is {comparison!r}; choose 'pairwise' or 'setwise'")
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}; it must be positive")
    selection = (nearest_patches, most_nearest, positions, positive_within)
    similarity, is_positive, is_negative, is_anchor = _nearest(representations, patch_classes, anchors, *selection)
    if not anchor_is_positive:
        is_positive = ops.logical_and(is_positive, ops.logical_not(is_anchor))
    contrast = {"pairwise": pairwise_contrast, "setwise": setwise_contrast}[comparison]
    return _mean_over_anchors(contrast(similarity / temperature, is_positive, is_negative), anchors)


def anchor_health(
    representations: Tensor,
    patch_classes: Tensor,
    anchors: Tensor,
    *,
    nearest_patches: Any = 100,
    most_nearest: int | None = None,
    positions: Tensor | None = None,
    positive_within: float | None = None,
) -> dict[str, Tensor]:
    """Describe the positives and negatives of the anchors of a batch, for the training log.

    Args:
        representations: `(B, P, F)`.
        patch_classes: Integer `(B, P)`.
        anchors: Integer `(B, A)`, -1 where a slice has fewer anchors.
        nearest_patches: As in the loss.
        most_nearest: As in the loss.
        positions: As in the loss.
        positive_within: As in the loss.

    Returns:
        A dict of float32 scalars over all anchors of the batch: `share_without_positive` (none but the anchor
        itself), `share_without_negative`, `mean_positives` (not counting the anchor); `alignment`, the mean squared
        distance of anchors to their positives on the unit sphere, 2 - 2 s, in [0, 4], over all pairs; `uniformity` of
        the anchors of each slice. All are 0 for a batch without anchors, `alignment` also for one without positives,
        and an anchor with a zero representation contributes no pair to it.

    Reference:
        Alignment and uniformity: Wang & Isola, ICML 2020, Sec. 4.1; which pairs they are measured on is ours.
    """
    selection = (nearest_patches, most_nearest, positions, positive_within)
    similarity, is_positive, is_negative, is_itself = _nearest(representations, patch_classes, anchors, *selection)
    is_positive = ops.logical_and(is_positive, ops.logical_not(is_itself))
    positives, negatives = (ops.sum(ops.cast(mask, "float32"), axis=-1) for mask in (is_positive, is_negative))
    anchors = ops.convert_to_tensor(anchors)
    is_anchor = anchors >= 0
    values = {
        "share_without_positive": positives == 0,
        "share_without_negative": negatives == 0,
        "mean_positives": positives,
    }
    has_direction = similarity[..., :1] > 0  # the anchor with itself: 1, or 0 for a zero vector
    is_pair = ops.logical_and(is_positive, ops.logical_and(has_direction, is_anchor[..., None]))
    # Anchors only: much of a slice is background, whose patches look alike even when training is healthy.
    own = ops.take_along_axis(representations, ops.maximum(anchors, 0)[..., None], axis=1)
    return {name: masked_mean(value, is_anchor) for name, value in values.items()} | {
        "alignment": masked_mean(ops.maximum(2 - 2 * similarity, 0.0), is_pair),
        "uniformity": uniformity(own, is_anchor),
    }


def pairwise_contrast(logits: Tensor, is_positive: Tensor, is_negative: Tensor) -> Tensor:
    """Average, over an anchor's positives, of each one's cost against all negatives.

    Args:
        logits: Similarities divided by the temperature, `(..., N)`.
        is_positive: Boolean, `(..., N)`.
        is_negative: Boolean, `(..., N)`, disjoint from `is_positive`.

    Returns:
        Loss per anchor, `(...)`; 0 where an anchor has no positive or no negative.
    """
    negatives = ops.logsumexp(ops.where(is_negative, logits, EXCLUDED), axis=-1, keepdims=True)
    cost = ops.softplus(negatives - logits)
    weight = ops.cast(is_positive, cost.dtype)
    return ops.sum(weight * cost, axis=-1) / ops.maximum(ops.sum(weight, axis=-1), 1.0)


def setwise_contrast(logits: Tensor, is_positive: Tensor, is_negative: Tensor) -> Tensor:
    """Compute the loss of all positives of an anchor jointly; arguments as for `pairwise_contrast`."""
    positives, negatives = (
        ops.logsumexp(ops.where(mask, logits, EXCLUDED), axis=-1) for mask in (is_positive, is_negative)
    )
    return ops.where(ops.any(is_positive, axis=-1), ops.softplus(negatives - positives), 0.0)


def _nearest(
    representations, patch_classes, anchors, nearest_patches, most_nearest=None, positions=None, positive_within=None
):
    """Select the nearest patches of each anchor, itself first.

    Returns:
        Similarity float32, is_positive, is_negative and is_anchor boolean, `(B, A, N)` each.
    """
    patches, most = _check(representations, patch_classes, anchors, nearest_patches, most_nearest)
    vectors = unit_vectors(representations)
    patch_classes, anchors = (ops.cast(indices, "int32") for indices in (patch_classes, anchors))
    index = ops.maximum(anchors, 0)
    similarity = ops.matmul(ops.take_along_axis(vectors, index[..., None], axis=1), ops.transpose(vectors, (0, 2, 1)))
    # Identical patches tie with the anchor, and a zero vector has no similarity even to itself: move the anchor to the
    # front, so that it is always selected. The gradient treats the selection of patches as constant.
    order = ops.stop_gradient(similarity) + FIRST * ops.one_hot(index, patches, dtype="float32")
    order = ops.where(patch_classes[:, None, :] < 0, -FIRST, order)  # last; masked below if selected all the same
    _, nearest = ops.top_k(order, min(most + 1, patches))
    similarity = ops.take_along_axis(similarity, nearest, axis=-1)
    classes = ops.take_along_axis(patch_classes[:, None, :], nearest, axis=-1)
    is_compared = classes >= 0
    if _is_per_slice(nearest_patches):  # the same number is selected in all slices, most similar first
        wanted = ops.cast(nearest_patches, "int32")[:, None, None]
        is_compared = ops.logical_and(is_compared, ops.arange(nearest.shape[-1], dtype="int32") <= wanted)
    is_positive = ops.logical_and(classes == classes[..., :1], is_compared)
    is_negative = ops.logical_and(classes != classes[..., :1], is_compared)
    if positive_within is not None:
        check_axes("positions", positions.shape, "P X", P=patches)
        places = ops.take(ops.convert_to_tensor(positions, "float32"), nearest, axis=0)  # (B, A, N, axes)
        squares = ops.sum(ops.square(places - places[..., :1, :]), axis=-1)
        is_positive = ops.logical_and(is_positive, squares <= positive_within**2 * (1 + ROUNDING))
    return similarity, is_positive, is_negative, nearest == index[..., None]


def _mean_over_anchors(cost, anchors):
    weight = ops.cast(ops.convert_to_tensor(anchors) >= 0, cost.dtype)
    return ops.sum(weight * cost, axis=-1) / ops.maximum(ops.sum(weight, axis=-1), 1.0)


def _is_per_slice(nearest_patches):
    return len(getattr(nearest_patches, "shape", ())) > 0


def _check(representations, patch_classes, anchors, nearest_patches, most_nearest):
    """Check the shapes; return the number of patches and how many of the nearest to select."""
    check_axes("representations", representations.shape, "B P F")
    batch, patches = representations.shape[:2]
    batch = {} if batch is None else {"B": batch}  # unknown while Keras traces a batch of any size
    check_axes("patch_classes", patch_classes.shape, "B P", P=patches, **batch)
    check_axes("anchors", anchors.shape, "B A", **batch)
    if _is_per_slice(nearest_patches):
        check_axes("nearest_patches", nearest_patches.shape, "B", **batch)
        nearest_patches = patches if most_nearest is None else most_nearest
    if nearest_patches < 1:
        raise InputError(f"nearest_patches is {nearest_patches}; at least 1 is needed")
    return patches, nearest_patches
