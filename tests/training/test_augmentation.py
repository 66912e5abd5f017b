import itertools
import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import ndimage

from training.augmentation import Changes, draw_changes
from training.intensity_changes import change_intensities
from training.warping import sampling_positions, warp, warp_labels

SIZES = {2: (24, 32), 3: (12, 16, 6)}
ALL = {"translation": 0.1, "rotation_degrees": 20, "scale": (0.8, 1.2), "elastic_px": 2.0}
OLD_DRAWS = json.loads((Path(__file__).parent.parent / "golden" / "drawn_changes.json").read_text())
both_ranks = pytest.mark.parametrize("rank", [2, 3])


def positions_of(size, seed=0, count=3, **changes):
    drawn = draw_changes(count, size, np.random.default_rng(seed), Changes(**changes))
    return drawn, ops.convert_to_numpy(sampling_positions(drawn["affine"], drawn["elastic"], size))


def warped(images, positions):
    return ops.convert_to_numpy(warp(ops.convert_to_tensor(images), ops.convert_to_tensor(positions)))


def warped_labels(labels, positions):
    return ops.convert_to_numpy(warp_labels(ops.convert_to_tensor(labels), ops.convert_to_tensor(positions)))


def pixels_of(size):
    return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)


@both_ranks
def test_no_change_reads_every_pixel_where_it_is(rank):
    _, positions = positions_of(SIZES[rank])
    np.testing.assert_allclose(positions, np.broadcast_to(pixels_of(SIZES[rank]), positions.shape), atol=1e-4)


@both_ranks
@pytest.mark.parametrize("seed", range(3))
def test_warp_agrees_with_scipy(rank, seed):
    images = np.random.default_rng(seed).normal(size=(3, *SIZES[rank], 2)).astype("float32")
    _, positions = positions_of(SIZES[rank], seed, **ALL)
    found = warped(images, positions)
    for b in range(3):
        for c in range(2):
            padded = np.pad(images[b, ..., c], 1)  # zero outside, with a linear transition
            expected = ndimage.map_coordinates(padded, np.moveaxis(positions[b], -1, 0) + 1, order=1)
            np.testing.assert_allclose(found[b, ..., c], expected, atol=1e-4)


@both_ranks
def test_labels_agree_with_scipy_and_gain_no_class(rank):
    size = SIZES[rank]
    labels = np.random.default_rng(1).choice([0, 2, 7], (3, *size)).astype("int32")
    _, positions = positions_of(size, 1, **ALL)
    found = warped_labels(labels, positions)
    assert set(np.unique(found)) <= {0, 2, 7}
    expected = ndimage.map_coordinates(labels[0], np.moveaxis(positions[0], -1, 0), order=0)
    inside = ((positions[0] >= 0) & (positions[0] <= np.array(size) - 1)).all(-1)  # scipy has no half pixel outside
    np.testing.assert_array_equal(found[0][inside], expected[inside])
    assert inside.mean() > 0.3


@both_ranks
def test_an_image_that_is_its_label_moves_exactly_like_it(rank):
    label = np.zeros((4, *SIZES[rank]), "int32")
    label[:, 3:8, 5:11] = 1
    _, positions = positions_of(SIZES[rank], 2, count=4, **ALL)
    image = warped(label[..., None].astype("float32"), positions)[..., 0]
    moved = warped_labels(label, positions)
    assert (moved != label).any()
    # Linear interpolation crosses one half at the edge of the nearest-neighbour result, except at corners.
    assert np.mean((image > 0.5) != moved) < 0.01


def keys_by_hand(nodes, size):
    """Interpolate a row of nodes at `size` pixels with Keys' cubic kernel, a = -1/2, in float64."""
    values = []
    for pixel in range(size):
        place = (pixel + 0.5) * len(nodes) / size - 0.5
        total = weights = 0.0
        for node in range(len(nodes)):
            t = abs(place - node)
            if t <= 1:
                weight = 1.5 * t**3 - 2.5 * t**2 + 1
            else:
                weight = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0
            total, weights = total + weight * nodes[node], weights + weight
        values.append(total / weights)
    return values


@pytest.mark.parametrize("size", [(24, 32), (9, 5), (12, 16, 6), (8, 9, 2)])
def test_displacements_are_interpolated_by_the_cubic_kernel_along_every_axis(size):
    drawn, positions = positions_of(size, 4, elastic_px=2.0, elastic_grid=3)
    expected = drawn["elastic"].astype("float64")
    for axis, length in enumerate(size, start=1):
        expected = np.apply_along_axis(keys_by_hand, axis, expected, length)
    # Positions between nodes are rounded to 1/1024 of their distance.
    np.testing.assert_allclose(positions - pixels_of(size), expected, atol=0.01)
    assert np.abs(expected).max() > 4


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="other backends do not round to 1/1024")
@pytest.mark.parametrize("size", [(24, 32), (160, 160), (31, 17), (2, 5)])
def test_displacements_of_slices_equal_bicubic_resizing_to_the_bit(size):
    drawn = draw_changes(2, size, np.random.default_rng(0), Changes(elastic_px=2.0))
    still = np.zeros_like(drawn["affine"])  # reads the centre everywhere, which shifts all displacements equally
    centre = np.array([(length - 1) / 2 for length in size], "float32")
    found = sampling_positions(still, drawn["elastic"], size)
    resized = ops.image.resize(drawn["elastic"], size, interpolation="bicubic", data_format="channels_last")
    np.testing.assert_array_equal(ops.convert_to_numpy(found), ops.convert_to_numpy(resized) + centre)


@pytest.mark.parametrize("name", OLD_DRAWS)
def test_what_is_drawn_for_old_configs_has_not_changed(name):
    """Compare shape, sum and last numbers of each array, and the next number, with those drawn before newer keys."""
    old, generator = OLD_DRAWS[name], np.random.default_rng(7)
    drawn = draw_changes(3, old["size"], generator, Changes(**old["changes"]))
    assert list(drawn) == list(old["drawn"])
    for key, (shape, total, last) in old["drawn"].items():
        assert list(drawn[key].shape) == shape
        np.testing.assert_allclose(drawn[key].astype("float64").sum(), total, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(drawn[key].ravel()[-4:], last, rtol=1e-6, atol=1e-7)
    assert generator.integers(2**40) == old["next"]


@both_ranks
def test_a_shift_moves_each_axis_and_no_other(rank):
    size, shift = SIZES[rank], (3, -2, 1)[:rank]
    image = np.arange(math.prod(size), dtype="float32").reshape(1, *size, 1)
    affine = np.concatenate([np.eye(rank), np.reshape(shift, (rank, 1))], 1)[None].astype("float32")
    positions = sampling_positions(affine, np.zeros((1, *(4, 5, 3)[:rank], rank), "float32"), size)
    # Output (r, c, d) reads input (r + 3, c - 2, d + 1); outside is black.
    places = tuple(slice(3 + s, 3 + s + length) for s, length in zip(shift, size, strict=True))
    expected = np.pad(image[0, ..., 0], 3)[places]
    np.testing.assert_allclose(warped(image, positions)[0, ..., 0], expected, rtol=1e-5)


def test_a_volume_turns_in_the_plane_of_its_slices():
    size = SIZES[3]
    changes = Changes(rotation_degrees=20, scale=(0.8, 1.2), translation=0.1)
    drawn = draw_changes(2, size, np.random.default_rng(0), changes)
    zoom = np.hypot(drawn["affine"][:, 0, 0], drawn["affine"][:, 1, 0])
    np.testing.assert_allclose(drawn["affine"][:, 2, 2], zoom, rtol=1e-6)
    assert (drawn["affine"][:, 2, :2] == 0).all() and (drawn["affine"][:, :2, 2] == 0).all()
    drawn["affine"][:, 2, 2:] = [1, 0]  # keep the depth: every slice must then move like a single slice
    volumes = np.random.default_rng(1).normal(size=(2, *size, 1)).astype("float32")
    moved = warped(volumes, sampling_positions(drawn["affine"], drawn["elastic"], size))
    flat = sampling_positions(drawn["affine"][:, :2][:, :, [0, 1, 3]], np.zeros((2, 3, 3, 2), "float32"), size[:2])
    for depth in range(size[2]):
        np.testing.assert_allclose(moved[:, :, :, depth], warped(volumes[:, :, :, depth], flat), atol=1e-4)


@both_ranks
def test_changes_keep_to_their_limits(rank):
    size = np.array(SIZES[rank])
    changes = Changes(brightness=0.2, contrast=0.3, **ALL)
    drawn = draw_changes(4000, SIZES[rank], np.random.default_rng(0), changes)
    assert {name: values.shape[1:] for name, values in drawn.items()} == {
        "affine": (rank, rank + 1),
        "elastic": ((4, 5, 2) if rank == 2 else (3, 3, 2, 3))[: rank + 1],
        "brightness": (),
        "contrast": (),
    }
    assert all(values.dtype == np.float32 for values in drawn.values())
    shift = np.abs(drawn["affine"][:, :, rank]).max(0)
    assert (shift <= 0.1 * size).all() and (shift > 0.097 * size).all()
    zoom = np.hypot(drawn["affine"][:, 0, 0], drawn["affine"][:, 1, 0])
    assert 0.8 <= zoom.min() < 0.81 and 1.19 < zoom.max() <= 1.2001
    angle = np.degrees(np.arctan2(drawn["affine"][:, 1, 0], drawn["affine"][:, 0, 0]))
    assert 19.5 < np.abs(angle).max() <= 20.001
    assert abs(drawn["elastic"].std() - 2.0) < 0.02
    assert np.abs(drawn["brightness"]).max() <= 0.2 and drawn["contrast"].min() >= 0.7


@both_ranks
def test_axes_bend_independently(rank):
    _, positions = positions_of(SIZES[rank], 3, count=40, elastic_px=2.0)
    bend = positions - pixels_of(SIZES[rank])
    for one, other in itertools.combinations(range(rank), 2):
        assert abs(np.corrcoef(bend[..., one].ravel(), bend[..., other].ravel())[0, 1]) < 0.1
    assert (bend.std(axis=tuple(range(rank + 1))) > 0.5).all()


@both_ranks
def test_intensities_change_about_the_mean(rank):
    image = np.random.default_rng(0).random((2, *SIZES[rank], 1)).astype("float32")
    changed = change_intensities(ops.convert_to_tensor(image), np.float32([0.1, -0.2]), np.float32([1.0, 0.5]))
    changed = ops.convert_to_numpy(changed)
    np.testing.assert_allclose(changed[0], image[0] + 0.1, atol=1e-5)
    np.testing.assert_allclose(changed[1], (image[1] - image[1].mean()) * 0.5 + image[1].mean() - 0.2, atol=1e-5)


class Augmentation(keras.Model):
    """Augment a batch inside a compiled function, as training does."""

    def call(self, batch):
        positions = sampling_positions(batch["affine"], batch["elastic"], batch["image"].shape[1:-1])
        image = change_intensities(warp(batch["image"], positions), batch["brightness"], batch["contrast"])
        return image, warp_labels(batch["label"], positions)


@both_ranks
def test_augmentation_compiles_with_xla(rank):
    generator = np.random.default_rng(0)
    drawn = draw_changes(2, SIZES[rank], generator, Changes(brightness=0.2, contrast=0.3, **ALL))
    image = generator.random((2, *SIZES[rank], 2)).astype("float32")
    batch = drawn | {"image": image, "label": (image[..., 0] > 0.5).astype("int32")}
    model = Augmentation()
    expected = [ops.convert_to_numpy(value) for value in model(batch)]
    model.compile(jit_compile=True)
    found = model.predict_on_batch(batch)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-4)
    assert np.mean(found[1] != expected[1]) < 0.001  # a position half-way between two pixels may be rounded either way


# Only a few shapes: backends that compile take a second for each.
sizes = st.sampled_from([(2, 3), (9, 4), (7, 7), (2, 3, 2), (7, 4, 3), (5, 5, 9)])
seeds = st.integers(0, 2**32 - 1)
strong = st.fixed_dictionaries(
    {
        "translation": st.floats(0, 1),
        "rotation_degrees": st.floats(0, 180),
        "scale": st.tuples(st.floats(0.3, 1), st.floats(1, 2)),
        "elastic_px": st.floats(0, 4),
        "elastic_grid": st.sampled_from([2, 8]),
    }
)
examples = settings(max_examples=40, deadline=None, derandomize=True)


@examples
@given(sizes, seeds)
def test_no_change_leaves_image_and_label_as_they_are(size, seed):
    generator = np.random.default_rng(seed)
    drawn, positions = positions_of(size, seed)
    image = generator.normal(size=(3, *size, 2)).astype("float32")
    label = generator.integers(0, 9, (3, *size)).astype("int32")
    np.testing.assert_array_equal(warped(image, positions), image)
    np.testing.assert_array_equal(warped_labels(label, positions), label)
    same = change_intensities(ops.convert_to_tensor(image), drawn["brightness"], drawn["contrast"])
    np.testing.assert_allclose(ops.convert_to_numpy(same), image, atol=1e-5)


@examples
@given(sizes, seeds, strong, st.sets(st.integers(0, 40), min_size=1, max_size=5))
def test_an_augmented_label_gains_no_class(size, seed, changes, classes):
    _, positions = positions_of(size, seed, **changes)
    label = np.random.default_rng(seed).choice(sorted(classes), (3, *size)).astype("int32")
    assert set(np.unique(warped_labels(label, positions))) <= classes | {0}


@examples
@given(sizes, seeds, strong)
def test_where_the_image_of_a_class_is_clear_the_label_says_so(size, seed, changes):
    _, positions = positions_of(size, seed, **changes)
    label = np.random.default_rng(seed).integers(0, 3, (3, *size)).astype("int32")
    moved = warped_labels(label, positions)
    nearest = 0.5 ** len(size)  # smallest share that linear interpolation gives the nearest pixel
    for number in (1, 2):
        share = warped((label == number)[..., None].astype("float32"), positions)[..., 0]
        assert (moved[share > 1 - nearest + 1e-4] == number).all()
        assert (share[moved == number] > nearest - 1e-4).all()
