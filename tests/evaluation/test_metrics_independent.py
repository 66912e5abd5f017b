"""Metrics of 200 pairs of random masks against SimpleITK and brute force, which do not use the same package.

SimpleITK defines Dice and volume as we do. Its Hausdorff distance is between voxels, not area-weighted surfaces, so it
only bounds ours: a point of our surface is at most half a voxel diagonal from the nearest border voxel, and vice versa,
so the two largest distances differ by one diagonal at most. HD95 and surface Dice are compared with brute force over
the distances between all pairs of surface points.
"""

import functools
import itertools
import math

import numpy as np
import pytest
from skimage.measure import marching_cubes, mesh_surface_area

from evaluation.scores import metrics
from evaluation.scores.metrics import score_subject

PAIRS = 200
SPACINGS = [(1.0, 1.0, 1.0), (0.9, 1.4, 5.5), (4.0, 1.0, 1.0), (0.7, 0.7, 3.0), (2.5, 1.25, 0.5), (0.3, 0.3, 6.0)]
TOLERANCE_MM = 2.0
ROUNDING = 1e-5  # areas from the surface element tables of both packages


def draw_mask(rng, shape, kind):
    if kind == "empty":
        return np.zeros(shape, bool)
    if kind == "full":
        return np.ones(shape, bool)
    if kind == "noise":
        return rng.random(shape) < rng.uniform(0.05, 0.95)
    mask = np.zeros(shape, bool)
    if kind == "one voxel":
        mask[tuple(int(rng.integers(n)) for n in shape)] = True
    elif kind == "corner":
        mask[tuple(rng.choice([0, n - 1]) for n in shape)] = True
    elif kind == "slab at the border":
        axis, end = int(rng.integers(3)), int(rng.integers(2))
        np.moveaxis(mask, axis, 0)[-end] = True
    else:
        centre, radii = [rng.uniform(0, n - 1) for n in shape], rng.uniform(1, 4, 3)
        distance = sum(((x - c) / r) ** 2 for x, c, r in zip(np.indices(shape), centre, radii, strict=True))
        mask = distance + rng.normal(0, 0.3, shape) < 1
    return mask


KINDS = ["blob", "blob", "blob", "noise", "one voxel", "corner", "slab at the border", "full", "empty"]


def draw_pair(number):
    """Draw two masks and a voxel size; every combination of kinds occurs."""
    rng = np.random.default_rng(number)
    kinds = list(itertools.product(KINDS, KINDS))[number % len(KINDS) ** 2]
    shape = tuple(int(n) for n in rng.integers(3, 10, 3))
    first, second = (draw_mask(rng, shape, kind) for kind in kinds)
    return first, first.copy() if number % 40 == 39 else second, SPACINGS[number % len(SPACINGS)]


@pytest.fixture
def simple_itk():
    return pytest.importorskip("SimpleITK")


def image_of(simple_itk, mask, spacing, pad=0):
    """Convert a mask; SimpleITK reverses the axes of numpy."""
    image = simple_itk.GetImageFromArray(np.pad(mask, pad).astype(np.uint8).T)
    image.SetSpacing([float(mm) for mm in spacing])
    return image


def score(predicted, true, spacing):
    (row,) = score_subject(predicted.astype(np.uint8), true.astype(np.uint8), spacing, ["organ"], TOLERANCE_MM)
    return row


def test_dice_and_volume_equal_those_of_simpleitk(simple_itk, subtests):
    for number in range(PAIRS):
        with subtests.test(f"pair {number}"):
            compare_dice_and_volume(number, simple_itk)


def compare_dice_and_volume(number, simple_itk):
    predicted, true, spacing = draw_pair(number)
    row = score(predicted, true, spacing)
    for mask, found in ((predicted, row["volume_ml"]), (true, row["volume_ml_reference"])):
        shape = simple_itk.LabelShapeStatisticsImageFilter()
        shape.Execute(image_of(simple_itk, mask, spacing))
        assert found == pytest.approx(shape.GetPhysicalSize(1) / 1000 if mask.any() else 0, rel=1e-12)
    if not predicted.any() and not true.any():
        assert math.isnan(row["dice"])
        return
    overlap = simple_itk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(image_of(simple_itk, true, spacing), image_of(simple_itk, predicted, spacing))
    assert row["dice"] == pytest.approx(overlap.GetDiceCoefficient(1), rel=1e-12, abs=0)


def test_the_largest_distance_is_that_of_simpleitk_within_a_voxel(monkeypatch, simple_itk, subtests):
    monkeypatch.setattr(metrics, "HD_PERCENTILE", 100)
    for number in range(PAIRS):
        with subtests.test(f"pair {number}"):
            compare_largest_distance(number, simple_itk)


def compare_largest_distance(number, simple_itk):
    predicted, true, spacing = draw_pair(number)
    found = score(predicted, true, spacing)["hd95_mm"]
    if not predicted.any() and not true.any():
        assert math.isnan(found)
    elif not predicted.any() or not true.any():
        assert found == pytest.approx(math.hypot(*(n * mm for n, mm in zip(true.shape, spacing, strict=True))))
    else:
        borders = []
        for mask in (predicted, true):
            image = image_of(simple_itk, mask, spacing, pad=1)
            inner = simple_itk.BinaryErode(image, [1, 1, 1], simple_itk.sitkBox)
            borders.append(simple_itk.Subtract(image, inner))
        distance = simple_itk.HausdorffDistanceImageFilter()
        distance.Execute(*borders)
        assert abs(found - distance.GetHausdorffDistance()) <= math.hypot(*spacing) + 1e-6


@functools.cache
def area_of(corners, spacing):
    """Return the surface area in a cell with these corners in the mask; inside and outside may be swapped."""
    cell = np.reshape(corners, (2, 2, 2)).astype(float)
    cell = cell if cell.sum() <= 4 else 1 - cell
    vertices, faces, _, _ = marching_cubes(cell, 0.5, spacing=spacing, method="lorensen")
    return mesh_surface_area(vertices, faces)


def surface_of(mask, spacing):
    """Return the corners in mm of all cells that the surface crosses, and the area in each."""
    padded = np.pad(mask, 1)
    points, areas = [], []
    for place in itertools.product(*(range(n - 1) for n in padded.shape)):
        corners = padded[tuple(slice(i, i + 2) for i in place)].ravel()
        if corners.any() and not corners.all():
            points.append(np.multiply(place, spacing))
            areas.append(area_of(tuple(corners.tolist()), spacing))
    return np.array(points), np.array(areas)


def test_hd95_and_surface_dice_equal_brute_force(subtests):
    for number in range(PAIRS):
        with subtests.test(f"pair {number}"):
            compare_with_all_distances(number)


def compare_with_all_distances(number):
    predicted, true, spacing = draw_pair(number)
    if not predicted.any() or not true.any():
        return  # explained at the top
    row = score(predicted, true, spacing)
    (points_a, areas_a), (points_b, areas_b) = surface_of(predicted, spacing), surface_of(true, spacing)
    between = np.linalg.norm(points_a[:, None] - points_b[None], axis=-1)
    lowest, highest, close = [], [], 0.0
    for distances, areas in ((between.min(axis=1), areas_a), (between.min(axis=0), areas_b)):
        order = np.argsort(distances)
        reached = np.cumsum(areas[order]) / areas.sum()
        # If 95 % are reached exactly, rounding decides between two distances.
        for ends, share in ((lowest, 0.95 - ROUNDING), (highest, 0.95 + ROUNDING)):
            ends.append(distances[order][np.flatnonzero(reached >= share)[0]])
        close += areas[distances <= TOLERANCE_MM].sum()
    assert max(lowest) - ROUNDING <= row["hd95_mm"] <= max(highest) + ROUNDING
    assert row["surface_dice"] == pytest.approx(close / (areas_a.sum() + areas_b.sum()), abs=ROUNDING)


def test_the_pairs_hold_what_they_are_meant_to_hold():
    pairs = [draw_pair(number) for number in range(PAIRS)]
    sizes = [(int(first.sum()), int(second.sum())) for first, second, _ in pairs]
    assert sum(0 in pair for pair in sizes) >= 30 and sum(pair == (0, 0) for pair in sizes) >= 2
    assert sum(1 in pair for pair in sizes) >= 60
    assert sum(np.array_equal(first, second) and first.any() for first, second, _ in pairs) >= 4
    at_border = [np.pad(m[1:-1, 1:-1, 1:-1], 1).sum() < m.sum() for pair in pairs for m in pair[:2]]
    assert sum(at_border) >= 200
    assert len({spacing for *_, spacing in pairs}) == len(SPACINGS)
