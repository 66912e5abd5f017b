"""Slow float64 loops written from the formulas, as references for the vectorised losses."""

import math

import numpy as np


def cosine(a, b):
    lengths = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / lengths if lengths else 0.0


def nearest_of(anchor, representations, nearest_patches, classes=None):
    """Return the anchor and its nearest patches, `[(patch, similarity), ...]`, without classes below 0."""
    others = [
        (patch, cosine(representations[anchor], representations[patch]))
        for patch in range(len(representations))
        if patch != anchor and (classes is None or classes[patch] >= 0)
    ]
    others.sort(key=lambda entry: -entry[1])
    return [(anchor, cosine(representations[anchor], representations[anchor])), *others[:nearest_patches]]


def is_near(anchor, patch, positions, positive_within):
    return positive_within is None or math.dist(positions[anchor], positions[patch]) <= positive_within


def anchor_cost(
    anchor, representations, classes, nearest, temperature=0.1, comparison="pairwise", anchor_is_positive=True, **near
):
    positives, negatives = [], []
    for patch, similarity in nearest_of(anchor, representations, nearest, classes):
        if classes[patch] != classes[anchor]:
            negatives.append(math.exp(similarity / temperature))
        elif (patch != anchor or anchor_is_positive) and is_near(anchor, patch, **near):
            positives.append(math.exp(similarity / temperature))
    if not positives:
        return 0.0
    if comparison == "setwise":
        return -math.log(sum(positives) / (sum(positives) + sum(negatives)))
    return sum(-math.log(own / (own + sum(negatives))) for own in positives) / len(positives)


def constrained_contrastive_by_hand(
    representations, classes, anchors, nearest_patches=100, positions=None, positive_within=None, **options
):
    """Return the loss per slice `(B,)` for `(B, P, F)`, `(B, P)` and `(B, A)`; nearest patches: a number or `(B,)`."""
    losses, near = [], {"positions": positions, "positive_within": positive_within}
    for index in range(len(representations)):
        nearest = nearest_patches if isinstance(nearest_patches, int) else int(nearest_patches[index])
        values = np.asarray(representations[index], "float64")
        costs = [
            anchor_cost(anchor, values, classes[index], nearest, **options, **near)
            for anchor in anchors[index]
            if anchor >= 0
        ]
        losses.append(sum(costs) / len(costs) if costs else 0.0)
    return np.array(losses)


def simclr_by_hand(view_a, view_b, temperature=0.1):
    views = np.concatenate([view_a, view_b]).astype("float64")
    images = len(view_a)
    losses = []
    for i in range(2 * images):
        partner = i + images if i < images else i - images
        others = [math.exp(cosine(views[i], views[k]) / temperature) for k in range(2 * images) if k != i]
        losses.append(-math.log(math.exp(cosine(views[i], views[partner]) / temperature) / sum(others)))
    return np.array(losses)


def anatomical_by_hand(views, partitions, temperature=0.1, same_part_attracts=False):
    views = np.asarray(views, "float64")
    number, slices = views.shape[:2]
    losses = []
    for s in range(slices):
        costs = []
        for i in range(number):
            negatives = sum(
                math.exp(cosine(views[i, s], views[k, other]) / temperature)
                for k in range(number)
                for other in range(slices)
                if partitions[other] != partitions[s]
            )
            for j, partner in np.ndindex(number, slices):
                is_positive = partner == s or (same_part_attracts and partitions[partner] == partitions[s])
                if is_positive and (j, partner) != (i, s):
                    own = math.exp(cosine(views[i, s], views[j, partner]) / temperature)
                    costs.append(-math.log(own / (own + negatives)))
        losses.append(sum(costs) / len(costs))
    return np.array(losses)


def masked_l1_by_hand(reconstruction, image, corrupted):
    losses = []
    for index in range(len(image)):
        errors = []
        for place in np.ndindex(image[index].shape):
            channel = place[-1] if corrupted.shape[-1] > 1 else 0
            if corrupted[index][(*place[:-1], channel)]:
                errors.append(abs(float(reconstruction[index][place]) - float(image[index][place])))
        losses.append(sum(errors) / len(errors) if errors else 0.0)
    return np.array(losses)


def region_of(feature_map, corner, region_size):
    """Return the features of one region as a single vector, pixel by pixel."""
    pixels = [np.add(corner, step) for step in np.ndindex(*[region_size] * len(corner))]
    return np.concatenate([feature_map[tuple(pixel)] for pixel in pixels])


def region_contrast_by_hand(map_a, map_b, corners, is_negative, region_size=3, temperature=0.1):
    """Chaitanya et al. 2020, L^R: each region against its partner and its negatives in both views."""
    losses = []
    for index in range(len(map_a)):
        regions = [place for place, corner in enumerate(corners[index]) if corner[0] >= 0]
        views = [
            {r: region_of(np.asarray(view[index], "float64"), corners[index][r], region_size) for r in regions}
            for view in (map_a, map_b)
        ]
        costs = []
        for own, other in (views, views[::-1]):
            for r in regions:
                partner = math.exp(cosine(own[r], other[r]) / temperature)
                negatives = sum(
                    math.exp(cosine(own[r], view[n]) / temperature)
                    for n in regions
                    if is_negative[index][r][n]
                    for view in (own, other)
                )
                costs.append(-math.log(partner / (partner + negatives)))
        losses.append(sum(costs) / len(costs) if costs else 0.0)
    return np.array(losses)


def tversky_costs_by_hand(target, probabilities, false_positive_weight, false_negative_weight):
    """Cost 1 - TI of each class, `(K,)`, pixel by pixel; `target` holds class indices."""
    costs = []
    for k in range(probabilities.shape[-1]):
        hits = wrong = missed = 0.0
        for pixel in np.ndindex(target.shape):
            p, g = float(probabilities[pixel][k]), float(target[pixel] == k)
            hits += p * g
            wrong += p * (1 - g)
            missed += (1 - p) * g
        total = hits + false_positive_weight * wrong + false_negative_weight * missed
        costs.append(1 - hits / total if total else 0.0)
    return np.array(costs)


def balanced_cross_entropy_by_hand(target, probabilities, weights=None):
    """Weighted mean over the classes of a target of the mean over their pixels of -log p."""
    pixels = list(zip(target.ravel(), probabilities.reshape(-1, probabilities.shape[-1]), strict=True))
    total = counted = 0.0
    for k in sorted(set(target.ravel())):
        costs = [-math.log(p[k]) for label, p in pixels if label == k]
        weight = 1.0 if weights is None else weights[k]
        total, counted = total + weight * sum(costs) / len(costs), counted + weight
    return total / counted


def plain_cross_entropy_by_hand(target, probabilities, weights=None):
    """Mean over pixels of -log p of their class, weighted by class."""
    total = counted = 0.0
    for label, p in zip(target.ravel(), probabilities.reshape(-1, probabilities.shape[-1]), strict=True):
        weight = 1.0 if weights is None else weights[label]
        total, counted = total - weight * math.log(p[label]), counted + weight
    return total / counted
