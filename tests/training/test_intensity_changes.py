import numpy as np
import pytest
from keras import ops
from scipy import ndimage
from skimage.exposure import adjust_gamma
from skimage.measure import block_reduce

from tests.training.test_augmentation import both_ranks, keys_by_hand
from training.augmentation import INTENSITIES, Changes, draw_changes
from training.intensity_changes import (
    apply_bias_field,
    blur,
    change_gamma,
    change_intensities,
    changed_intensities,
    lower_resolution,
)

SIZES = {2: (24, 32), 3: (12, 16, 6)}
SETTINGS = {
    "gamma": {"limits": (0.7, 1.5), "probability": 0.3},
    "bias_field": {"sd": 0.3, "nodes": 4, "probability": 0.3},
    "blur": {"limits": (0.5, 1.0), "probability": 0.2},
    "low_resolution": {"largest": 2.0, "probability": 0.25},
    "noise": {"largest_sd": 0.1, "probability": 0.1},
}
NEUTRAL = {"gamma": 1, "bias": 0, "blur": 0, "coarseness": 1, "noise": 0}


def images_of(rank, count=3, channels=2, seed=0):
    return np.random.default_rng(seed).random((count, *SIZES[rank], channels)).astype("float32")


def applied(change, images, values):
    return ops.convert_to_numpy(change(ops.convert_to_tensor(images), ops.convert_to_tensor(np.float32(values))))


def drawn_with(intensities, size=(24, 32), count=3000, seed=0, channels=1, **changes):
    changes = Changes(intensities=intensities, **changes)
    return draw_changes(count, size, np.random.default_rng(seed), changes, channels)


@both_ranks
def test_gamma_agrees_with_scikit_image(rank):
    images, gamma = images_of(rank), [0.7, 1.0, 1.5]
    expected = [adjust_gamma(image.astype("float64"), power) for image, power in zip(images, gamma, strict=True)]
    found = applied(change_gamma, images, gamma)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_array_equal(found[1], images[1])


@both_ranks
def test_blur_agrees_with_scipy_slice_by_slice(rank):
    images, sd = images_of(rank), [0.6, 0.0, 1.7]
    found = applied(blur, images, sd)
    for image, width, blurred in zip(images, sd, found, strict=True):
        options = {"sigma": (width, width, *(0,) * (rank - 1)), "mode": "constant", "truncate": 8}
        # Normalised to the pixels inside, because SciPy has zeros outside.
        inside = ndimage.gaussian_filter(np.ones_like(image, "float64"), **options)
        expected = ndimage.gaussian_filter(image.astype("float64"), **options) / inside
        np.testing.assert_allclose(blurred, expected, atol=3e-6)
    np.testing.assert_array_equal(found[1], images[1])


def coarse_by_hand(row, edge):
    """Return a row of means over large pixels, linear between their centres and constant beyond, in float64."""
    size, means, start = len(row), [], 0.0
    while start < size - 1e-3:
        weights = [max(0.0, min(start + edge, pixel + 1) - max(start, pixel)) for pixel in range(size)]
        means.append(np.dot(weights, row) / sum(weights))
        start += edge
    centres = (np.arange(len(means)) + 0.5) * edge - 0.5
    return np.interp(np.arange(size), centres, means)


@both_ranks
@pytest.mark.parametrize("edge", [1.37, 2.0, 3.9])
def test_low_resolution_agrees_with_means_and_interpolation_by_hand(rank, edge):
    images = images_of(rank, count=2)
    expected = images.astype("float64")
    for axis in (1, 2):
        expected = np.apply_along_axis(coarse_by_hand, axis, expected, edge)
    found = applied(lower_resolution, images, [edge, 1.0])
    np.testing.assert_allclose(found[0], expected[0], atol=3e-6)
    np.testing.assert_array_equal(found[1], images[1])


def test_half_the_resolution_agrees_with_scikit_image_and_scipy():
    images = images_of(2, count=1)
    coarse = block_reduce(images[0].astype("float64"), (2, 2, 1), np.mean)
    expected = ndimage.zoom(coarse, (2, 2, 1), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(applied(lower_resolution, images, [2.0])[0], expected, atol=3e-6)


@both_ranks
def test_a_bias_field_is_a_smooth_factor_for_all_contrasts(rank):
    images = images_of(rank)
    drawn = drawn_with({"bias_field": SETTINGS["bias_field"] | {"probability": 1}}, SIZES[rank], count=3)["bias"]
    expected = drawn.astype("float64")
    for axis, length in enumerate(SIZES[rank], start=1):
        expected = np.apply_along_axis(keys_by_hand, axis, expected, length)
    found = applied(apply_bias_field, images, drawn)
    np.testing.assert_allclose(found, images * np.exp(expected), rtol=5e-3)  # positions are rounded to 1/1024
    assert np.ptp(np.exp(expected), axis=tuple(range(1, rank + 1))).min() > 0.2


@both_ranks
def test_all_changes_come_one_after_the_other(rank):
    images = images_of(rank)
    always = {name: settings | {"probability": 1} for name, settings in SETTINGS.items()}
    drawn = drawn_with(always, SIZES[rank], count=3, channels=2, brightness=0.1, contrast=0.2)
    expected = applied(change_gamma, images, drawn["gamma"])
    expected = applied(apply_bias_field, expected, drawn["bias"])
    expected = applied(blur, expected, drawn["blur"])
    expected = applied(lower_resolution, expected, drawn["coarseness"]) + drawn["noise"]
    expected = change_intensities(ops.convert_to_tensor(expected), drawn["brightness"], drawn["contrast"])
    found = ops.convert_to_numpy(changed_intensities(ops.convert_to_tensor(images), drawn))
    np.testing.assert_allclose(found, ops.convert_to_numpy(expected), atol=1e-5)
    assert np.abs(found - images).mean() > 0.05


def test_an_empty_batch_of_changes_is_no_change():
    images = ops.convert_to_tensor(images_of(2))
    assert changed_intensities(images, {}) is images


@both_ranks
@pytest.mark.parametrize("name", INTENSITIES)
def test_probability_0_leaves_images_exactly_as_they_are(rank, name):
    images = images_of(rank)
    drawn = drawn_with({name: SETTINGS[name] | {"probability": 0}}, SIZES[rank], count=3, channels=2)
    (key,) = set(drawn) & set(NEUTRAL)
    assert (drawn[key] == NEUTRAL[key]).all()
    found = changed_intensities(ops.convert_to_tensor(images), {key: drawn[key]})
    np.testing.assert_array_equal(ops.convert_to_numpy(found), images)


def test_changes_come_as_often_and_as_strong_as_asked_for():
    drawn = drawn_with(SETTINGS, size=(4, 4))
    changed = {key: (drawn[key] != neutral).reshape(3000, -1).any(1) for key, neutral in NEUTRAL.items()}
    probabilities = [settings["probability"] for settings in SETTINGS.values()]
    np.testing.assert_allclose([share.mean() for share in changed.values()], probabilities, atol=0.03)
    gamma = drawn["gamma"][changed["gamma"]]
    assert 0.7 <= gamma.min() < 0.72 and 1.47 < gamma.max() <= 1.5
    assert abs((gamma < 1).mean() - 0.5) < 0.06
    assert 0.5 <= drawn["blur"][changed["blur"]].min() < 0.52 and 0.98 < drawn["blur"].max() <= 1
    assert 1.95 < drawn["coarseness"].max() <= 2
    bias = drawn["bias"][changed["bias"]]
    assert bias.shape[1:] == (4, 4, 1) and abs(bias.std() - 0.3) < 0.01
    sd = drawn["noise"][changed["noise"]].reshape(-1, 16).std(1)
    assert abs(np.sqrt(np.mean(sd**2)) - 0.1 / np.sqrt(3)) < 0.005  # uniform from 0 to 0.1
    assert all(values.dtype == np.float32 for values in drawn.values())


@pytest.mark.parametrize(("limits", "low", "high"), [((0.5, 0.9), 0.5, 0.9), ((1.2, 2.0), 1.2, 2.0)])
def test_gamma_keeps_to_limits_on_one_side_of_1(limits, low, high):
    gamma = drawn_with({"gamma": {"limits": limits, "probability": 1}}, size=(4, 4))["gamma"]
    assert low - 1e-6 <= gamma.min() and gamma.max() <= high + 1e-6 and np.ptp(gamma) > 0.9 * (high - low)


@pytest.mark.parametrize("name", INTENSITIES)
def test_what_is_drawn_for_one_change_does_not_depend_on_the_others(name):
    everything = {"mirror": ["left_right"], "translation": 0.1, "elastic_px": 2.0, "brightness": 0.1}
    together, alone = drawn_with(SETTINGS, count=20, **everything), drawn_with({name: SETTINGS[name]}, count=20)
    (key,) = set(alone) & set(NEUTRAL)
    np.testing.assert_array_equal(together[key], alone[key])


def test_switching_changes_on_leaves_the_others_as_they_were():
    old = {"translation": 0.1, "rotation_degrees": 15, "elastic_px": 2.0, "brightness": 0.1, "contrast": 0.2}
    with_them, without = drawn_with(SETTINGS, count=20, **old), drawn_with(None, count=20, **old)
    for key, values in without.items():
        np.testing.assert_array_equal(with_them[key], values)


def test_changes_are_independent_of_one_another():
    always = {name: settings | {"probability": 1} for name, settings in SETTINGS.items()}
    drawn = drawn_with(always, size=(4, 4), brightness=0.1, contrast=0.2, mirror=["left_right"], translation=0.1)
    strengths = [drawn[key] for key in ("gamma", "blur", "coarseness", "brightness", "contrast")]
    strengths += [drawn["bias"][:, 0, 0, 0], drawn["noise"].std(axis=(1, 2, 3)), drawn["affine"][:, 1, 1]]
    strengths += [drawn["affine"][:, 0, 2], drawn["noise"][:, 0, 0, 0], drawn["noise"][:, 0, 1, 0]]
    correlations = np.corrcoef(strengths) - np.eye(len(strengths))
    assert np.abs(correlations).max() < 0.08  # 4 standard errors of 3000 draws


def test_noise_differs_between_contrasts_and_images():
    always = {"noise": {"largest_sd": 0.1, "probability": 1}}
    noise = drawn_with(always, count=4, channels=2)["noise"]
    assert noise.shape == (4, 24, 32, 2)
    assert np.abs(np.corrcoef(noise.transpose(0, 3, 1, 2).reshape(8, -1)) - np.eye(8)).max() < 0.15
