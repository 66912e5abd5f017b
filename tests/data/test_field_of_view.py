"""The foreground outside the slices, the volume of a voxel, and the voxel sizes of training."""

import itertools

import numpy as np
import pytest
from nibabel import orientations

from data.field_of_view import field_of_training, note_of_outside
from data.geometry import SliceGrid, voxel_ml
from evaluation.scores.metrics import score_subject

AXES = [(order, flips) for order in itertools.permutations(range(3)) for flips in ((1, 1, 1), (-1, 1, -1))]


def affine_of(order, flips, spacing=(2.0, 3.0, 5.0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, flip) in enumerate(zip(order, flips, strict=True)):
        affine[world, axis] = flip * spacing[axis]
    return affine


@pytest.mark.parametrize(("order", "flips"), AXES)
@pytest.mark.parametrize(("pixel_size", "image_size"), [(None, (9, 8)), (4.0, (7, 6)), (3.0, (200, 5))])
def test_the_share_outside_is_that_of_the_voxels_that_slices_do_not_reach(order, flips, pixel_size, image_size):
    grid = SliceGrid((12, 15, 18), affine_of(order, flips), pixel_size, image_size)
    mask = np.random.default_rng(3).random(grid.shape) < 0.4
    shown = grid.to_volume(np.ones((grid.slices, *image_size), np.uint8), order=0) > 0
    assert grid.share_outside(mask) == pytest.approx(np.mean(~shown[mask]), abs=1e-12)
    assert grid.share_outside(mask) > 0.05 and not grid.shows_everything
    assert grid.share_outside(np.zeros(grid.shape)) == 0


def test_slices_as_large_as_the_scan_show_everything():
    grid = SliceGrid((12, 15, 18), np.diag([2.0, 2.0, 5.0, 1.0]), None, (15, 12))
    assert grid.shows_everything and grid.share_outside(np.ones(grid.shape)) == 0


@pytest.mark.parametrize(("order", "flips"), AXES)
def test_pixels_are_rows_and_columns_of_axial_slices(order, flips):
    grid = SliceGrid((4, 5, 6), affine_of(order, flips), None, (4, 4))
    by_world = dict(zip(order, (2.0, 3.0, 5.0), strict=True))
    assert grid.pixel_spacing == (by_world[1], by_world[0]) and grid.slice_spacing == by_world[2]
    assert orientations.aff2axcodes(grid.affine)[order.index(2)] in "SI"


def test_a_voxel_is_what_its_three_edges_span():
    sheared = np.eye(4)
    sheared[:3, :3] = [[2, 1.0, 0], [0, 3, 0.5], [0, 0, 4]]
    edges = sheared[:3, :3].T
    assert voxel_ml(sheared) == pytest.approx(abs(np.dot(np.cross(edges[0], edges[1]), edges[2])) / 1000)
    assert voxel_ml(np.diag([-2.0, 2, 4, 1])) == pytest.approx(0.016)
    assert voxel_ml(sheared) < np.prod(np.linalg.norm(sheared[:3, :3], axis=0)) / 1000


def test_tables_of_step_4_take_the_volume_of_sheared_voxels():
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    sheared = np.array([[2.0, 1, 0, 0], [0, 3, 0, 0], [0, 0, 4, 0], [0, 0, 0, 1]])
    (row,) = score_subject(mask, mask, (2.0, 10**0.5, 4.0), ["organ"], 1.0, voxel_ml=voxel_ml(sheared))
    assert row["volume_ml"] == row["volume_ml_reference"] == pytest.approx(8 * 0.024)


def test_only_large_shares_are_reported():
    assert note_of_outside({"a": 0.0, "b": 0.0099}) is None and note_of_outside({}) is None
    note = note_of_outside({"a": 0.02, "b": 0.5, "c": 0.0})
    assert note.startswith("in 2 of 3 subjects, some of the foreground lies outside the slices (b 50.0%, a 2.0%);")


def test_the_field_of_training_is_the_range_of_its_subjects():
    grids = [SliceGrid((4, 5, 6), np.diag([a, b, c, 1.0]), None, (4, 4)) for a, b, c in ((1, 1.5, 4), (2, 1.2, 3))]
    found = field_of_training(grids, is_size_known=True, foreground_outside=0.1)
    assert found == {"pixel_mm": [1.0, 2.0], "slice_mm": [3.0, 4.0], "foreground_outside": 0.1}
    unknown = field_of_training(grids, is_size_known=False, foreground_outside=None)
    assert unknown == {"pixel_mm": None, "slice_mm": None, "foreground_outside": None}
