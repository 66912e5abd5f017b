import itertools
import logging
from dataclasses import replace

import numpy as np
import pytest

from tests.training.test_augmentation import keys_by_hand
from training.augmentation import Changes, describe_changes, draw_changes, folded_share
from utils.config.augmentation import AugmentationSection

OLD = Changes(**AugmentationSection(elastic_px=2.0, elastic_grid=8).changes())
DEFAULT = Changes(**AugmentationSection().changes())


def area_of_cells(changes, size, seed, count):
    """Return the signed area of every cell between four pixels of warped grids, `(B, H-1, W-1)`, in float64.

    Of the four triangles of a cell, the smallest counts.
    """
    drawn = draw_changes(count, size, np.random.default_rng(seed), changes)
    rows, columns = (
        np.stack([keys_by_hand(list(unit), length) for unit in np.eye(nodes)], 1)
        for nodes, length in zip(drawn["elastic"].shape[1:3], size, strict=True)
    )
    field = np.einsum("rh,cw,bhwi->brci", rows, columns, drawn["elastic"].astype("float64"))
    pixels = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1) - (np.array(size) - 1) / 2
    field += np.einsum("bij,rcj->brci", drawn["affine"][:, :, :2].astype("float64"), pixels)
    corners = [field[:, :-1, :-1], field[:, 1:, :-1], field[:, 1:, 1:], field[:, :-1, 1:]]
    areas = []
    for one, two, three in itertools.combinations(range(4), 3):
        (a, b), (c, d) = (
            np.moveaxis(corners[two] - corners[one], -1, 0),
            np.moveaxis(corners[three] - corners[one], -1, 0),
        )
        areas.append(a * d - b * c)
    return np.stack(areas)


def test_the_old_default_folds_a_fiftieth_of_the_pixels():
    corner_areas = area_of_cells(OLD, (64, 80), 0, 40)
    expected = np.mean(corner_areas[0] <= 0)
    assert 0.015 < expected < 0.03
    # The first triangle has the same two differences as the determinant, one of them shifted by a cell.
    assert folded_share((64, 80), OLD, samples=40) == pytest.approx(expected, abs=0.004)


def test_the_default_never_folds_in_10000_draws():
    # Small images are hardest: with at least two nodes, these are closer than the spacing of the grid.
    # (64, 80) and (112, 128) were checked in the same way, which takes minutes.
    assert min(area_of_cells(DEFAULT, (32, 32), seed, 100).min() for seed in range(100)) > 0


@pytest.mark.parametrize(("size", "count"), [((64, 80), 100), ((112, 128), 40)])
def test_the_default_is_far_from_folding(size, count):
    assert area_of_cells(DEFAULT, size, 0, count).min() > 0.2
    assert folded_share(size, DEFAULT) == 0


@pytest.mark.parametrize("mirror", [[], ["left_right"], ["left_right", "anterior_posterior"]])
def test_mirroring_is_no_folding(mirror):
    assert folded_share((32, 48), replace(DEFAULT, mirror=mirror)) == 0
    assert 0.01 < folded_share((32, 48), replace(OLD, mirror=mirror)) < 0.05


def test_volumes_fold_too():
    changes = Changes(elastic_px=2.0, elastic_grid=8)
    assert 0.01 < folded_share((16, 16, 8), changes, samples=4) < 0.2
    assert folded_share((16, 16, 8), replace(changes, elastic_px=0.1), samples=4) == 0


@pytest.mark.parametrize(("changes", "folds"), [(OLD, True), (DEFAULT, False), (Changes(), False)])
def test_the_log_tells_lengths_in_pixels_and_folding(changes, folds, caplog):
    caplog.set_level(logging.INFO, logger="mrccl")
    describe_changes((32, 48), changes)
    assert ("folds" in caplog.text) == folds
    assert f"elastic_px {changes.elastic_px}" in caplog.text and "mirror" not in caplog.text
