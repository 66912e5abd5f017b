import numpy as np
import pytest
from keras import ops

from data.geometry import SliceGrid
from training.augmentation import AXIS_OF, Changes, draw_changes
from training.warping import sampling_positions, warp, warp_labels

SIZES = {2: (24, 32), 3: (12, 16, 6)}
ALL = {"translation": 0.1, "rotation_degrees": 20, "scale": (0.8, 1.2), "elastic_px": 1.0, "elastic_grid": 16}
AXES = {2: ["anterior_posterior", "left_right"], 3: list(AXIS_OF)}
both_ranks = pytest.mark.parametrize("rank", [2, 3])


def moved(image, label, **changes):
    """Change images `(B, ...)` and labels; also returns what was drawn."""
    size = label.shape[1:]
    drawn = draw_changes(len(label), size, np.random.default_rng(0), Changes(**changes))
    positions = sampling_positions(drawn["affine"], drawn["elastic"], size)
    image = warp(ops.convert_to_tensor(image), positions)
    label = warp_labels(ops.convert_to_tensor(label), positions)
    return drawn, ops.convert_to_numpy(image), ops.convert_to_numpy(label)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "AIL", "SRP"])
def test_each_name_mirrors_its_anatomical_axis(codes):
    """A phantom with one bright voxel at the patient's left, front and top is stored in several orientations."""
    from nibabel import orientations

    ras = np.zeros((16, 12, 6), "float32")
    ras[2, 9, 4] = 1  # x grows to the right, y to the front, z upwards
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    on_disk = orientations.apply_orientation(ras, turn)
    affine = orientations.inv_ornt_aff(turn, ras.shape)
    grid = SliceGrid(on_disk.shape, affine, None, (12, 16))
    volume = np.moveaxis(grid.to_slices(on_disk), 0, 2)[None]  # rows, columns, slices, as crops of volumes
    expected = {"left_right": (13, 9, 4), "anterior_posterior": (2, 2, 4), "inferior_superior": (2, 9, 1)}
    for name, (x, y, z) in expected.items():
        mirrored = np.flip(volume, 1 + AXIS_OF[name])[0]
        back = grid.to_volume(np.moveaxis(mirrored, 2, 0))
        back = orientations.apply_orientation(
            back, orientations.ornt_transform(orientations.axcodes2ornt(codes), orientations.axcodes2ornt("RAS"))
        )
        assert np.unravel_index(back.argmax(), back.shape) == (x, y, z), name


@both_ranks
def test_mirroring_alone_flips_every_second_image_exactly(rank):
    generator, count = np.random.default_rng(1), 200
    image = generator.random((count, *SIZES[rank], 2)).astype("float32")
    label = generator.integers(0, 5, (count, *SIZES[rank])).astype("int32")
    for name in AXES[rank]:
        drawn, found, found_label = moved(image, label, mirror=[name])
        is_flipped = drawn["affine"][:, AXIS_OF[name], AXIS_OF[name]] < 0
        assert 0.35 < is_flipped.mean() < 0.65
        axis = AXIS_OF[name]
        for number, flipped in enumerate(is_flipped):
            expected, classes = image[number], label[number]
            if flipped:
                expected, classes = np.flip(expected, axis), np.flip(classes, axis)
            np.testing.assert_array_equal(found[number], expected)
            np.testing.assert_array_equal(found_label[number], classes)


def test_axes_are_mirrored_independently():
    drawn = draw_changes(4000, (4, 4, 4), np.random.default_rng(0), Changes(mirror=list(AXIS_OF)))
    signs = np.stack([drawn["affine"][:, axis, axis] for axis in range(3)])
    assert np.abs(np.corrcoef(signs) - np.eye(3)).max() < 0.06
    alone = draw_changes(4000, (4, 4, 4), np.random.default_rng(0), Changes(mirror=["left_right"]))
    np.testing.assert_array_equal(alone["affine"][:, 1, 1], signs[AXIS_OF["left_right"]])


@both_ranks
def test_an_image_that_is_its_label_moves_exactly_like_it_also_mirrored(rank):
    label = np.zeros((8, *SIZES[rank]), "int32")
    label[:, 3:8, 5:11] = 1
    drawn, image, found = moved(label[..., None].astype("float32"), label, mirror=AXES[rank], **ALL)
    assert (np.linalg.det(drawn["affine"][:, :, :rank]) < 0).any()
    # Linear interpolation crosses one half at the edge of the nearest-neighbour result, except at corners.
    assert np.mean((image[..., 0] > 0.5) != found) < 0.01
    assert set(np.unique(found)) == {0, 1}


@both_ranks
def test_a_moved_image_is_mirrored_about_its_own_middle_before_it_is_moved(rank):
    image = np.random.default_rng(2).random((8, *SIZES[rank], 1)).astype("float32")
    label = np.zeros(image.shape[:-1], "int32")
    drawn, straight, _ = moved(image, label, **ALL)
    mirrored, found, _ = moved(image, label, mirror=["left_right"], **ALL)
    np.testing.assert_array_equal(mirrored["elastic"], drawn["elastic"])
    is_flipped = mirrored["affine"][:, 1, 1] < 0
    np.testing.assert_array_equal(found[~is_flipped], straight[~is_flipped])
    np.testing.assert_array_equal(np.abs(mirrored["affine"]), np.abs(drawn["affine"]))
    assert 0 < is_flipped.sum() < 8


def test_a_shift_in_pixels_is_the_same_along_every_axis():
    shift = draw_changes(4000, (24, 32), np.random.default_rng(0), Changes(translation_px=3.0))["affine"][:, :, 2]
    assert (np.abs(shift).max(0) <= 3).all() and (np.abs(shift).max(0) > 2.95).all()
