"""Metrics against slow references that share no code with the package that computes them."""

import itertools
import math
import warnings

import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from skimage.measure import marching_cubes, mesh_surface_area

from evaluation.scores import metrics
from evaluation.scores.metrics import score_subject
from utils.checks import InputError

LABELS = ["liver", "kidneys"]


def surface_by_hand(mask, spacing):
    """List every 2x2x2 neighbourhood crossed by the surface, with its corner in mm and the area inside it."""
    padded = np.pad(mask, 1)
    points, areas = [], []
    for corner in itertools.product(*(range(n - 1) for n in padded.shape)):
        cell = padded[tuple(slice(i, i + 2) for i in corner)].astype(float)
        if 0 < cell.sum() < 8:
            cell = cell if cell.sum() <= 4 else 1 - cell  # the surface is the same whichever side is inside
            vertices, faces, _, _ = marching_cubes(cell, 0.5, spacing=tuple(map(float, spacing)), method="lorensen")
            points.append([i * mm for i, mm in zip(corner, spacing, strict=True)])
            areas.append(mesh_surface_area(vertices, faces))
    return np.array(points), np.array(areas)


def agreement_by_hand(predicted, true, spacing, tolerance):
    surfaces = [surface_by_hand(predicted, spacing), surface_by_hand(true, spacing)]
    percentiles, close, total = [], 0.0, 0.0
    for (points, areas), (others, _) in (surfaces, surfaces[::-1]):
        distances = np.array([min(math.dist(point, other) for other in others) for point in points])
        order = np.argsort(distances)
        reached = np.cumsum(areas[order]) / areas.sum()
        percentiles.append(distances[order][np.flatnonzero(reached >= 0.95 - 1e-9)[0]])
        close += areas[distances <= tolerance].sum()
        total += areas.sum()
    return max(percentiles), close / total


def blob(rng, shape):
    """Draw a random mask that looks connected and may touch the border."""
    centre = [rng.uniform(0, n) for n in shape]
    axes = np.indices(shape)
    distance = sum(((axis - c) / rng.uniform(1.5, 4)) ** 2 for axis, c in zip(axes, centre, strict=True))
    mask = distance + rng.normal(0, 0.2, shape) < 1
    mask[tuple(int(c) for c in centre)] = True
    return mask


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.9, 1.4, 5.5), (4.0, 1.0, 1.0)])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_slow_reference(seed, spacing):
    rng = np.random.default_rng(seed)
    shape = (9, 8, 7)
    true, predicted = blob(rng, shape), blob(rng, shape)
    (row,) = score_subject(predicted.astype(np.uint8), true.astype(np.uint8), spacing, ["organ"], 2.0)
    voxels = list(itertools.product(*map(range, shape)))
    both = sum(1 for v in voxels if true[v] and predicted[v])
    sizes = sum(1 for v in voxels if true[v]), sum(1 for v in voxels if predicted[v])
    assert row["dice"] == pytest.approx(2 * both / sum(sizes))
    hd95, surface_dice = agreement_by_hand(predicted, true, spacing, 2.0)
    assert row["hd95_mm"] == pytest.approx(hd95)
    assert row["surface_dice"] == pytest.approx(surface_dice, abs=1e-5)
    assert row["volume_ml_reference"] == pytest.approx(sizes[0] * math.prod(spacing) / 1000)
    assert row["volume_ml"] == pytest.approx(sizes[1] * math.prod(spacing) / 1000)


def plain_scores(predicted, true, spacing, tolerance):
    """Compute Dice, HD95 and surface Dice of whole masks with the package alone, without cropping."""
    if not predicted.any() or not true.any():
        if not predicted.any() and not true.any():
            return [math.nan] * 3
        return [0.0, math.dist(np.multiply(true.shape, spacing), (0, 0, 0)), 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        distances = surface_distance.compute_surface_distances(true, predicted, spacing)
    return [
        2 * (predicted & true).sum() / (predicted.sum() + true.sum()),
        surface_distance.compute_robust_hausdorff(distances, 95),
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance),
    ]


def classes_of(kind, rng, shape):
    """Draw a map of three classes: empty, one voxel, noise, a box on the border, or nested blobs."""
    classes = np.zeros(shape, np.uint8)
    if kind == "one voxel":
        classes[tuple(rng.integers(0, shape))] = rng.integers(1, 4)
    elif kind == "noise":
        classes = rng.integers(0, 4, shape).astype(np.uint8)
    elif kind == "border":
        classes[: shape[0] // 2, :, -2:] = 1
        classes[-1, -1, 0] = 3
    elif kind == "blobs":
        smooth = ndimage.gaussian_filter(rng.random(shape), 1.5)
        classes = np.digitize(smooth, np.quantile(smooth, [0.6, 0.8, 0.9])).astype(np.uint8)
    return classes


@pytest.mark.parametrize("few", [0, 10**9], ids=["search tree", "distance transform"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 1.4, 5.5)])
@pytest.mark.parametrize("kinds", itertools.combinations_with_replacement(
    ["empty", "one voxel", "border", "noise", "blobs"], 2
))  # fmt: skip
def test_scores_in_the_box_equal_those_of_the_whole_volume(kinds, spacing, few, monkeypatch):
    monkeypatch.setattr(metrics, "FEW", few)
    rng, labels = np.random.default_rng(len(kinds[0] + kinds[1])), ["a", "b", "c"]
    regions = {"all": labels, "outer": ["a", "c"], "b": ["b"]}
    prediction, reference = (np.pad(classes_of(kind, rng, (14, 11, 9)), ((3, 0), (0, 4), (0, 2))) for kind in kinds)
    rows = score_subject(prediction, reference, spacing, labels, 2.0, regions)
    for row, indices in zip(rows, [(1, 2, 3), (1, 3), (2,)], strict=True):
        expected = plain_scores(np.isin(prediction, indices), np.isin(reference, indices), spacing, 2.0)
        found = [row[key] for key in ("dice", "hd95_mm", "surface_dice")]
        np.testing.assert_allclose(found, expected, rtol=1e-12, equal_nan=True)
        volumes = [np.isin(classes, indices).sum() * math.prod(spacing) / 1000 for classes in (prediction, reference)]
        assert [row["volume_ml"], row["volume_ml_reference"]] == pytest.approx(volumes)


def test_false_positives_far_away_are_found_by_the_search_tree():
    true = np.zeros((60, 50, 40), np.uint8)
    true[20:26, 20:26, 20:26] = 1
    predicted = true.copy()
    predicted[0, 0, 0] = predicted[-1, -1, -1] = 1
    (row,) = score_subject(predicted, true, (1.0, 2.0, 3.0), ["organ"], 1.0)
    expected = plain_scores(predicted > 0, true > 0, (1.0, 2.0, 3.0), 1.0)
    assert [row[key] for key in ("dice", "hd95_mm", "surface_dice")] == pytest.approx(expected, rel=1e-12)
    surfaces = [metrics._surface(mask > 0, (1.0, 2.0, 3.0))[0] for mask in (predicted, true)]
    assert surfaces[0].size > metrics.FEW * sum(surface.sum() for surface in surfaces), "few enough for the tree"


def test_a_shift_along_each_axis_is_measured_in_mm_of_that_axis():
    spacing = (0.8, 1.5, 6.0)
    true = np.zeros((20, 20, 20), np.uint8)
    true[5:14, 5:14, 5:14] = 1
    for axis, mm in enumerate(spacing):
        (row,) = score_subject(np.roll(true, 2, axis), true, spacing, ["cube"], 1.0)
        assert row["hd95_mm"] == pytest.approx(2 * mm)
        assert row["dice"] == pytest.approx(7 / 9)


def test_perfect_agreement():
    true = np.zeros((6, 6, 6), np.uint8)
    true[2:4, 2:4, 2:4] = 1
    true[0, 0, 0] = 2
    for row in score_subject(true, true, (1, 1, 3), LABELS, 1.0):
        assert (row["dice"], row["hd95_mm"], row["surface_dice"]) == (1.0, 0.0, 1.0)
        assert row["volume_ml"] == row["volume_ml_reference"]


def test_absent_classes_follow_the_stated_convention():
    empty = np.zeros((30, 40, 12), np.uint8)
    some = empty.copy()
    some[3, 3, 3] = 1
    for prediction, reference in ((some, empty), (empty, some)):
        liver, kidneys = score_subject(prediction, reference, (1.0, 2.0, 5.0), LABELS, 2.0)
        assert (liver["dice"], liver["surface_dice"]) == (0.0, 0.0)
        assert liver["hd95_mm"] == pytest.approx(math.sqrt(30**2 + 80**2 + 60**2))
        assert all(math.isnan(kidneys[key]) for key in ("dice", "hd95_mm", "surface_dice"))
        assert kidneys["volume_ml"] == kidneys["volume_ml_reference"] == 0.0


def test_without_a_voxel_size_nothing_is_said_in_mm_or_ml():
    label = np.ones((4, 4, 4), np.uint8)
    (row,) = score_subject(label, label, None, ["lesion"], 2.0)
    assert row == {
        "label": "lesion", "dice": 1.0, "hd95_mm": None, "surface_dice": None, "volume_ml": None,
        "volume_ml_reference": None,
        "voxels_reference": 64,
    }  # fmt: skip


def test_regions_unite_classes_and_may_overlap():
    """The regions of BraTS are compared with scores of the merged masks."""
    generator = np.random.default_rng(7)
    reference, prediction = generator.integers(0, 4, (2, 7, 6, 5))
    labels = ["necrosis", "oedema", "enhancing"]
    regions = {
        "whole_tumour": ["oedema", "enhancing", "necrosis"],
        "core": ["necrosis", "enhancing"],
        "e": ["enhancing"],
    }
    rows = score_subject(prediction, reference, (1, 1, 2), labels, 1.0, regions)
    assert [row["label"] for row in rows] == ["whole_tumour", "core", "e"]
    for row, values in zip(rows, [(1, 2, 3), (1, 3), (3,)], strict=True):
        masks = [np.zeros(reference.shape, np.uint8) for _ in range(2)]
        for mask, classes in zip(masks, (prediction, reference), strict=True):
            for place in np.ndindex(classes.shape):
                mask[place] = classes[place] in values
        [alone] = score_subject(*masks, (1, 1, 2), [row["label"]], 1.0)
        assert row == alone
    assert score_subject(prediction, reference, (1, 1, 2), labels, 1.0, {}) == score_subject(
        prediction, reference, (1, 1, 2), labels, 1.0
    )


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8), "on one grid"),
        (np.zeros((4, 4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), "prediction: float32 values"),
        (np.zeros((4, 4, 4), np.uint8), np.full((4, 4, 4), 3, np.uint8), "reference: class indices from 3 to 3"),
    ],
)
def test_unusable_maps_are_refused(prediction, reference, message):
    with pytest.raises(InputError, match=message):
        score_subject(prediction, reference, (1, 1, 1), LABELS, 2.0)
