import numpy as np
import pytest
from keras import ops
from scipy import ndimage

from training.augmentation import change_intensities, draw_changes, sampling_positions, warp, warp_labels

SIZE = (24, 32)


def positions_of(seed=0, count=3, **changes):
    drawn = draw_changes(count, SIZE, np.random.default_rng(seed), **changes)
    return drawn, ops.convert_to_numpy(sampling_positions(drawn["affine"], drawn["elastic"], SIZE))


ALL = {"translation": 0.1, "rotation_degrees": 20, "scale": (0.8, 1.2), "elastic_px": 2.0}


def test_no_change_reads_every_pixel_where_it_is():
    _, positions = positions_of()
    expected = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    np.testing.assert_allclose(positions, np.broadcast_to(expected, positions.shape), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_warp_agrees_with_scipy(seed):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(3, *SIZE, 2)).astype("float32")
    _, positions = positions_of(seed, **ALL)
    warped = ops.convert_to_numpy(warp(ops.convert_to_tensor(images), ops.convert_to_tensor(positions)))
    for b in range(3):
        for c in range(2):
            padded = np.pad(images[b, ..., c], 1)  # zero outside, linear on the way there
            expected = ndimage.map_coordinates(padded, np.moveaxis(positions[b], -1, 0) + 1, order=1)
            np.testing.assert_allclose(warped[b, ..., c], expected, atol=1e-4)


def test_labels_agree_with_scipy_and_gain_no_class():
    labels = np.random.default_rng(1).choice([0, 2, 7], (3, *SIZE)).astype("int32")
    _, positions = positions_of(1, **ALL)
    warped = ops.convert_to_numpy(warp_labels(ops.convert_to_tensor(labels), ops.convert_to_tensor(positions)))
    assert set(np.unique(warped)) <= {0, 2, 7}
    expected = ndimage.map_coordinates(labels[0], np.moveaxis(positions[0], -1, 0), order=0)
    inside = ((positions[0] >= 0) & (positions[0] <= np.array(SIZE) - 1)).all(-1)  # scipy knows no half pixel outside
    np.testing.assert_array_equal(warped[0][inside], expected[inside])
    assert inside.mean() > 0.5


def test_an_image_that_is_its_label_moves_exactly_like_it():
    label = np.zeros((4, *SIZE), "int32")
    label[:, 6:15, 10:22] = 1
    _, positions = positions_of(2, count=4, **ALL)
    image = ops.convert_to_numpy(warp(ops.convert_to_tensor(label[..., None].astype("float32")), positions))[..., 0]
    moved = ops.convert_to_numpy(warp_labels(ops.convert_to_tensor(label), positions))
    assert (moved != label).any()
    # Linear interpolation crosses one half at the edge that nearest neighbour draws, up to the corners.
    assert np.mean((image > 0.5) != moved) < 0.01


def test_a_shift_moves_rows_and_columns_and_not_each_other():
    image = np.arange(np.prod(SIZE), dtype="float32").reshape(1, *SIZE, 1)
    affine = np.array([[[1, 0, 3], [0, 1, -2]]], "float32")  # output (r, c) reads input (r + 3, c - 2)
    positions = sampling_positions(affine, np.zeros((1, 4, 5, 2), "float32"), SIZE)
    moved = ops.convert_to_numpy(warp(ops.convert_to_tensor(image), positions))
    np.testing.assert_allclose(moved[0, :-3, 2:], image[0, 3:, :-2], rtol=1e-5)
    assert (moved[0, -3:] == 0).all() and (moved[0, :, :2] == 0).all()


def test_changes_keep_to_their_limits():
    drawn = draw_changes(4000, SIZE, np.random.default_rng(0), brightness=0.2, contrast=0.3, **ALL)
    shift = np.abs(drawn["affine"][:, :, 2]).max(0)
    assert (shift <= [2.4, 3.2]).all() and (shift > [2.3, 3.1]).all()
    zoom = np.hypot(drawn["affine"][:, 0, 0], drawn["affine"][:, 1, 0])
    assert 0.8 <= zoom.min() < 0.81 and 1.19 < zoom.max() <= 1.2001
    angle = np.degrees(np.arctan2(drawn["affine"][:, 1, 0], drawn["affine"][:, 0, 0]))
    assert 19.5 < np.abs(angle).max() <= 20.001
    assert abs(drawn["elastic"].std() - 2.0) < 0.02
    assert np.abs(drawn["brightness"]).max() <= 0.2 and drawn["contrast"].min() >= 0.7


def test_rows_and_columns_bend_independently():
    drawn, positions = positions_of(3, count=40, elastic_px=2.0)
    straight = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)
    bend = positions - straight
    correlation = np.corrcoef(bend[..., 0].ravel(), bend[..., 1].ravel())[0, 1]
    assert abs(correlation) < 0.1 and bend.std() > 0.5


def test_intensities_change_about_the_mean():
    image = np.random.default_rng(0).random((2, *SIZE, 1)).astype("float32")
    changed = change_intensities(ops.convert_to_tensor(image), np.float32([0.1, -0.2]), np.float32([1.0, 0.5]))
    changed = ops.convert_to_numpy(changed)
    np.testing.assert_allclose(changed[0], image[0] + 0.1, atol=1e-5)
    np.testing.assert_allclose(changed[1], (image[1] - image[1].mean()) * 0.5 + image[1].mean() - 0.2, atol=1e-5)
