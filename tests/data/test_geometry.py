"""Scans in any orientation to slices in one orientation and back, without a shift."""

import itertools
import json

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from data.geometry import SliceGrid, axial_turns

ORIENTATIONS = [
    "".join(axis[end] for axis, end in zip(axes, ends, strict=True))
    for axes in itertools.permutations(["LR", "PA", "IS"])
    for ends in itertools.product([0, 1], repeat=3)
]
OBLIQUE = nibabel.eulerangles.euler2mat(z=0.2, y=-0.15, x=0.1)


def stored_as(code, volume, affine):
    """Store a RAS volume with other axes, as another scanner might."""
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code))
    return (
        orientations.apply_orientation(volume, turn),
        affine @ orientations.inv_ornt_aff(turn, volume.shape[:3]),
    )


def ras_affine(spacing=(2.0, 3.0, 4.0), rotation=None):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = -20, 7, 3
    return affine


def centre_of_mass(image):
    weights = image / image.sum()
    return np.array([(weights * index).sum() for index in np.indices(image.shape)])


@pytest.mark.parametrize("rotation", [None, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_slices_are_the_same_from_every_orientation_and_labels_return_exactly(code, rotation):
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 5, (6, 7, 5)).astype(np.uint8)
    stored, affine = stored_as(code, volume, ras_affine(rotation=rotation))
    grid = SliceGrid(stored.shape, affine, None, (10, 9))
    slices = grid.to_slices(stored, order=0)
    # By hand: rows run from anterior to posterior, columns from right to left; padded by 2 before and the rest after.
    expected = np.zeros((5, 10, 9), np.uint8)
    expected[:, 2:9, 2:8] = volume[::-1, ::-1, :].transpose(2, 1, 0)
    assert np.array_equal(slices, expected)
    assert slices.dtype == np.uint8
    assert np.array_equal(grid.to_volume(slices, order=0), stored)
    turn, turn_back = axial_turns(affine)
    assert np.array_equal(turn(stored)[::-1, ::-1], volume.transpose(1, 0, 2)) and turn(stored)[..., None].ndim == 4
    assert np.array_equal(turn_back(turn(stored)), stored)


@pytest.mark.parametrize("pixel_size", [None, 1.7])
@pytest.mark.parametrize("code", ORIENTATIONS)
def test_a_left_kidney_stays_left(code, pixel_size):
    volume = np.zeros((20, 18, 6), np.uint8)
    affine = ras_affine((1.5, 1.5, 5.0))
    affine[0, 3] = -15.0
    volume[3:7, 5:9, 2:4] = 3  # low x in RAS: the patient's left
    stored, stored_affine = stored_as(code, volume, affine)
    grid = SliceGrid(stored.shape, stored_affine, pixel_size, (32, 32))
    slices = grid.to_slices(stored, order=0)
    columns = np.nonzero(slices)[2]
    assert columns.min() >= 16, "the patient's left is the right half of the image"
    back = grid.to_volume(slices, order=0)
    world = nibabel.affines.apply_affine(stored_affine, np.argwhere(back == 3))
    assert (world[:, 0] < 0).all(), "left is negative x"
    assert world.mean(axis=0) == pytest.approx(
        nibabel.affines.apply_affine(affine, np.argwhere(volume)).mean(axis=0), abs=0.8
    )


def mm_right_and_front(grid, rows, columns):
    """Return the distances of pixel centres from the middle of the volume along x (left is negative) and y."""
    spacing = np.array([1.0, 1.25]) if grid.shape[0] != 30 else np.ones(2)
    height, width = (round(n * s / grid.pixel_size) for n, s in zip(grid.shape[1::-1], spacing[::-1], strict=True))
    first_row, first_column = (height - grid.image_size[0]) // 2, (width - grid.image_size[1]) // 2
    return (
        -(columns + first_column - (width - 1) / 2) * grid.pixel_size,
        -(rows + first_row - (height - 1) / 2) * grid.pixel_size,
    )


@pytest.mark.parametrize("pixel_size", [0.7, 1.0, 1.9, 2.0, 3.3])
@pytest.mark.parametrize("size", [(40, 44), (41, 45)], ids=["even", "odd"])
def test_resampled_images_do_not_shift(size, pixel_size):
    spacing, middle = np.array([1.0, 1.25]), (np.array(size) - 1) / 2
    x, y = np.indices(size)
    volume = np.stack(
        [np.exp(-(((x - a) / 3) ** 2) - ((y - b) / 3) ** 2) for a, b in [(13.3, 26.1), (25.0, 17.4)]], axis=-1
    )[:, :, None]
    grid = SliceGrid(volume.shape[:3], ras_affine((*spacing, 3.0)), pixel_size, (96, 96))
    slices = grid.to_slices(volume)
    back = grid.to_volume(slices)
    for number in range(2):
        original = centre_of_mass(volume[:, :, 0, number])
        found = mm_right_and_front(grid, *centre_of_mass(slices[0, ..., number]))
        assert found == pytest.approx((original - middle) * spacing, abs=0.03)
        assert centre_of_mass(back[:, :, 0, number]) == pytest.approx(original, abs=0.03)


def test_a_linear_ramp_is_resampled_exactly():
    x, y = np.meshgrid(np.arange(30.0), np.arange(26.0), indexing="ij")
    volume = (100 - 2 * (x - 14.5) + 3 * (y - 12.5))[..., None]
    grid = SliceGrid(volume.shape, ras_affine((1, 1, 1)), 0.6, (64, 63))
    right, front = mm_right_and_front(grid, *np.indices((64, 63)))
    inner = (np.abs(front) < 12.5) & (np.abs(right) < 14.5)
    assert inner.sum() > 1500
    assert grid.to_slices(volume)[0][inner] == pytest.approx((100 - 2 * right + 3 * front)[inner], abs=1e-3)


def test_shrinking_averages_instead_of_picking():
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)[..., None]
    grid = SliceGrid(checkerboard.shape, np.eye(4), 4.0, (16, 16))
    assert grid.to_slices(checkerboard)[0] == pytest.approx(np.full((16, 16), 0.5), abs=0.02)


@pytest.mark.parametrize("pixel_size", [0.8, 1.0, 2.0, 2.7, 4.0])
def test_nearest_labels_gain_no_class_and_keep_their_size(pixel_size):
    label = np.zeros((96, 96, 1), np.int16)
    centre = np.array([47.5, 47.5])
    distance = np.linalg.norm(np.argwhere(np.ones((96, 96))).reshape(96, 96, 2) - centre, axis=-1)
    label[distance < 30] = 7
    label[distance < 15] = 200
    grid = SliceGrid(label.shape, np.eye(4), pixel_size, (128, 128))
    slices = grid.to_slices(label, order=0)
    back = grid.to_volume(slices, order=0)
    assert set(np.unique(slices)) == set(np.unique(back)) == {0, 7, 200}
    for value in (7, 200):
        assert (slices == value).sum() * pixel_size**2 == pytest.approx((label == value).sum(), rel=0.08)
        assert (back == value).sum() == pytest.approx((label == value).sum(), rel=0.08)


@pytest.mark.parametrize("pixel_size", [0.5, 1.5, 2.0, 3.0, 4.0])
def test_labels_move_neither_against_images_nor_in_size(pixel_size):
    rng = np.random.default_rng(8)
    x, y = np.indices((96, 90))
    shifts, volumes = [], []
    for a, b, radius in rng.uniform([20, 20, 8], [70, 65, 15], (40, 3)):
        label = ((x - a) ** 2 + (y - b) ** 2 < radius**2).astype(np.uint8)[..., None]
        grid = SliceGrid(label.shape, np.eye(4), pixel_size, (192, 192))
        slices = grid.to_slices(label, order=0)
        back = grid.to_volume(slices, order=0)
        shifts.append(centre_of_mass(back) - centre_of_mass(label))
        volumes.append([slices.sum() * pixel_size**2 / label.sum(), back.sum() / label.sum()])
    assert np.mean(shifts, axis=0)[:2] == pytest.approx([0, 0], abs=0.06)
    assert np.mean(volumes, axis=0) == pytest.approx([1, 1], abs=0.01)


@pytest.mark.parametrize("spacing", [(1, 1), (2, 1), (1, 2)], ids=["both", "columns", "rows"])
def test_equally_near_labels_vote(spacing):
    label = np.random.default_rng(4).integers(0, 3, (12, 10, 2)).astype(np.uint8)
    slices = SliceGrid(label.shape, np.diag([*spacing, 1, 1.0]), 2.0, (16, 16)).to_slices(label, order=0)
    height, width = 10 * spacing[1] // 2, 12 * spacing[0] // 2
    top, left = -((height - 16) // 2), -((width - 16) // 2)
    turned = label[::-1, ::-1].transpose(2, 1, 0)
    for z, row, column in np.ndindex(2, height, width):
        rows = slice(2 * row, 2 * row + 2) if spacing[1] == 1 else slice(row, row + 1)
        columns = slice(2 * column, 2 * column + 2) if spacing[0] == 1 else slice(column, column + 1)
        counts = np.bincount(turned[z, rows, columns].ravel(), minlength=3)
        assert counts[slices[z, top + row, left + column]] == counts.max()


@pytest.mark.parametrize(("size", "image_size"), [((9, 12), (6, 7)), ((12, 9), (5, 8)), ((4, 5), (9, 8))])
def test_crop_and_pad_are_undone_and_the_rest_is_filled(size, image_size):
    volume = np.arange(1, np.prod(size) + 1).reshape(*size, 1).astype(np.int32)
    grid = SliceGrid(volume.shape, ras_affine(), None, image_size)
    back = grid.to_volume(grid.to_slices(volume, order=0), order=0, fill=-1)
    kept = back != -1
    assert np.array_equal(back[kept], volume[kept])
    # rows are the second axis of a RAS volume, columns the first
    assert kept.sum() == min(size[1], image_size[0]) * min(size[0], image_size[1])
    assert np.array_equal(grid.to_slices(volume), grid.to_slices(volume, order=0).astype(np.float32))


@pytest.mark.parametrize("pixel_size", [None, 1.3, 2.0])
def test_probabilities_sum_to_one_everywhere(pixel_size):
    rng = np.random.default_rng(5)
    grid = SliceGrid((40, 38, 3), np.diag([1, 1.2, 3, 1.0]), pixel_size, (16, 16))
    probabilities = rng.dirichlet(np.ones(3), (3, 16, 16)).astype(np.float32)
    back = grid.to_volume(probabilities, fill=[1, 0, 0])
    assert back.shape == (40, 38, 3, 3)
    assert back.sum(axis=-1) == pytest.approx(np.ones((40, 38, 3)), abs=1e-5)
    assert back[0, 0, 0] == pytest.approx([1, 0, 0]), "outside the crop it is background"


def test_the_field_of_view_reaches_half_a_pixel_beyond_the_outermost_centres():
    grid = SliceGrid((40, 40, 1), np.eye(4), 4.0, (10, 10))
    assert np.array_equal(grid.to_volume(np.full((1, 10, 10), 0.25)), np.full((40, 40, 1), 0.25, np.float32))


def test_a_constant_image_stays_constant_up_to_its_border():
    grid = SliceGrid((40, 30, 2), np.eye(4), 1.6, (32, 32))
    slices = grid.to_slices(np.ones((40, 30, 2)))
    rows, columns = (slices[0] > 0).any(axis=1).sum(), (slices[0] > 0).any(axis=0).sum()
    assert (rows, columns) == (19, 25)
    assert set(np.unique(slices.round(5))) == {0, 1}


def test_all_channels_are_resampled_equally():
    volume = np.random.default_rng(2).random((11, 13, 4, 3)).astype(np.float32)
    grid = SliceGrid(volume.shape[:3], ras_affine(), 2.6, (16, 8))
    slices = grid.to_slices(volume)
    assert slices.shape == (4, 16, 8, 3)
    for channel in range(3):
        assert np.allclose(slices[..., channel], grid.to_slices(volume[..., channel]), atol=1e-6)


def test_a_grid_survives_json():
    grid = SliceGrid((11, 13, 4), ras_affine(rotation=OBLIQUE), 2.6, (16, 8))
    again = SliceGrid.from_dict(json.loads(json.dumps(grid.to_dict())))
    assert again.to_dict() == grid.to_dict()
    volume = np.random.default_rng(2).random((11, 13, 4))
    assert np.array_equal(again.to_slices(volume), grid.to_slices(volume))


def test_wrong_shapes_are_refused():
    grid = SliceGrid((11, 13, 4), ras_affine(), None, (16, 8))
    with pytest.raises(ValueError, match=r"the volume is \(11, 13, 5\), but .* made for \(11, 13, 4\)"):
        grid.to_slices(np.zeros((11, 13, 5)))
    with pytest.raises(ValueError, match=r"the slices are \(4, 8, 16\), but this slice grid makes \(4, 16, 8\)"):
        grid.to_volume(np.zeros((4, 8, 16)))
    with pytest.raises(ValueError, match="a slice grid needs a 3D shape"):
        SliceGrid((11, 13, 4, 2), np.eye(4), None, (16, 8))
