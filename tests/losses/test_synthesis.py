"""Synthesis losses against loops in float64, scikit-image and central differences."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops
from skimage.metrics import structural_similarity

from losses.synthesis import l1_loss, mse_loss, ssim_loss, synthesis_loss
from tests.gradients import central_differences, gradient, value_and_gradient
from utils.checks import InputError

SIZES = [(7, 6), (13, 4), (5, 4, 3)]


def pair(size, seed=0, batch=2, contrasts=2, mask_share=0.6):
    """Return target, prediction and mask of one size."""
    generator = np.random.default_rng(seed)
    target = generator.random((batch, *size, contrasts)).astype("float32")
    prediction = (target + 0.3 * generator.normal(size=target.shape)).astype("float32")
    return target, prediction, generator.random((batch, *size)) < mask_share


def mean_by_hand(cost, mask):
    """Return the mean per image of `(B, ..., C)` over the voxels of a mask `(B, ...)`; 0 if it is empty."""
    chosen = [image[inside] for image, inside in zip(cost, mask, strict=True)]
    return np.array([values.mean() if values.size else 0.0 for values in chosen])


def ssim_by_hand(target, prediction, mask=None, data_range=1.0):
    """Return 1 - SSIM, voxel by voxel and contrast by contrast, with explicit windows."""
    sizes = target.shape[1:-1]
    reach = [min(11, size if size % 2 else size - 1) // 2 for size in sizes]
    axes = [np.exp(-(np.arange(-r, r + 1.0) ** 2) / (2 * 1.5**2)) for r in reach]
    window = axes[0]
    for axis in axes[1:]:
        window = window[..., None] * axis
    window = window / window.sum()
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    losses = []
    for image in range(len(target)):
        values = []
        centres = itertools.product(*(range(r, size - r) for r, size in zip(reach, sizes, strict=True)))
        for centre in centres:
            if mask is not None and not mask[(image, *centre)]:
                continue
            region = tuple(slice(c - r, c + r + 1) for c, r in zip(centre, reach, strict=True))
            for contrast in range(target.shape[-1]):
                t, p = (np.asarray(x[image][(*region, contrast)], "float64") for x in (target, prediction))
                mt, mp = (window * t).sum(), (window * p).sum()
                vt, vp = (window * (t - mt) ** 2).sum(), (window * (p - mp) ** 2).sum()
                vtp = (window * (t - mt) * (p - mp)).sum()
                ssim = (2 * mt * mp + c1) * (2 * vtp + c2) / ((mt**2 + mp**2 + c1) * (vt + vp + c2))
                values.append(1 - ssim)
        losses.append(np.mean(values) if values else 0.0)
    return np.array(losses)


def outcome():
    """Return every loss with its gradient, for the comparison in `test_backends`."""
    target, prediction, mask = pair((13, 6, 5), seed=9)
    result = {}
    for name in ("l1", "mse", "l1_ssim"):
        loss = lambda x, name=name: synthesis_loss(target, x, name=name, mask=mask)  # noqa: E731
        result[f"loss/{name}"], result[f"gradient/{name}"] = value_and_gradient(loss, prediction)
    return result


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_masked", [False, True])
def test_values_and_gradients_equal_the_references(size, is_masked):
    target, prediction, mask = pair(size, seed=len(size))
    everywhere = np.ones_like(mask)
    mask = mask if is_masked else None
    exact = target.astype("float64")
    references = {
        l1_loss: lambda x: mean_by_hand(np.abs(x - exact), mask if is_masked else everywhere),
        mse_loss: lambda x: mean_by_hand((x - exact) ** 2, mask if is_masked else everywhere),
        ssim_loss: lambda x: ssim_by_hand(target, x, mask),
    }
    for loss, reference in references.items():
        found = loss(target, prediction, mask=mask)
        assert tuple(found.shape) == (2,) and keras.backend.standardize_dtype(found.dtype) == "float32"
        np.testing.assert_allclose(ops.convert_to_numpy(found), reference(prediction), rtol=2e-5, atol=1e-6)
        slope = gradient(lambda x, loss=loss: loss(target, x, mask=mask), prediction)
        np.testing.assert_allclose(slope, central_differences(reference, prediction), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("size", [(24, 17), (13, 12, 14)])
@pytest.mark.parametrize("data_range", [1.0, 4.0])
def test_ssim_is_that_of_scikit_image(size, data_range):
    target, prediction, _ = pair(size, seed=3)
    found = ops.convert_to_numpy(ssim_loss(target, prediction, data_range=data_range))
    for image, loss in enumerate(found):
        expected = structural_similarity(
            target[image].astype("float64"),
            prediction[image].astype("float64"),
            channel_axis=-1,
            data_range=data_range,
            gaussian_weights=True,
            use_sample_covariance=False,
        )
        np.testing.assert_allclose(1 - loss, expected, rtol=1e-5)


def test_each_contrast_has_its_own_similarity():
    target, prediction, _ = pair((12, 12), contrasts=3)
    together = ops.convert_to_numpy(ssim_loss(target, prediction))
    alone = [
        ops.convert_to_numpy(ssim_loss(target[..., place : place + 1], prediction[..., place : place + 1]))
        for place in range(3)
    ]
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-5)


@pytest.mark.parametrize("size", [(12, 13), (6, 5, 12)])
def test_constant_images_give_finite_values_and_gradients(size):
    for low, high in ((0.0, 0.0), (1.0, 1.0), (0.0, 1.0)):
        target, prediction = (np.full((1, *size, 1), value, "float32") for value in (low, high))
        loss = float(ssim_loss(target, prediction)[0])
        expected = 1 - (2 * low * high + 1e-4) / (low**2 + high**2 + 1e-4)
        assert loss == pytest.approx(expected, abs=1e-3)  # variances of constants are rounding errors over c2 = 9e-4
        assert np.isfinite(gradient(lambda x, target=target: ssim_loss(target, x), prediction)).all()


def test_a_perfect_synthesis_costs_nothing():
    target, _, mask = pair((12, 11, 11))
    for name in ("l1", "mse", "l1_ssim"):
        np.testing.assert_allclose(ops.convert_to_numpy(synthesis_loss(target, target, name=name)), 0, atol=1e-6)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(synthesis_loss(target, target + 1, name=name, mask=np.zeros_like(mask))), 0
        )


def test_names_and_weights_put_the_parts_together():
    target, prediction, mask = pair((12, 13))
    for options in ({}, {"mask": mask}, {"mask": mask[..., None].astype("float32")}):
        l1, mse, ssim = (loss(target, prediction, **options) for loss in (l1_loss, mse_loss, ssim_loss))
        for name, weight, expected in (("l1", 1, l1), ("mse", 1, mse), ("l1_ssim", 0.25, l1 + 0.25 * ssim)):
            found = synthesis_loss(target, prediction, name=name, ssim_weight=weight, **options)
            np.testing.assert_allclose(ops.convert_to_numpy(found), ops.convert_to_numpy(expected), rtol=1e-6)


@pytest.mark.parametrize("loss", [l1_loss, mse_loss])
def test_what_lies_outside_the_mask_has_no_effect(loss):
    target, prediction, mask = pair((5, 4, 3))
    expected = ops.convert_to_numpy(loss(target, prediction, mask=mask))
    prediction[~mask] = np.nan
    np.testing.assert_array_equal(ops.convert_to_numpy(loss(target, prediction, mask=mask)), expected)
    slope = gradient(lambda x: loss(target, x, mask=mask), prediction)
    assert np.isfinite(slope).all() and not slope[~mask].any()


def test_half_precision_is_computed_in_float32():
    target, prediction, _ = pair((12, 12))
    rounded = ops.cast(prediction, "bfloat16")
    expected = synthesis_loss(target, ops.convert_to_numpy(ops.cast(rounded, "float32")), name="l1_ssim")
    found = synthesis_loss(target, rounded, name="l1_ssim")
    np.testing.assert_array_equal(ops.convert_to_numpy(found), ops.convert_to_numpy(expected))


def test_impossible_choices_are_refused():
    target, prediction, mask = pair((5, 4))
    with pytest.raises(InputError, match="synthesis loss is 'l2'; choose from 'l1', 'mse', 'l1_ssim'"):
        synthesis_loss(target, prediction, name="l2")
    with pytest.raises(InputError, match="ssim_weight is -1"):
        synthesis_loss(target, prediction, name="l1_ssim", ssim_weight=-1)
    with pytest.raises(InputError, match="data_range is 0"):
        ssim_loss(target, prediction, data_range=0)
    with pytest.raises(InputError, match=r"prediction \(2, 5, 4, 1\) must be equal"):
        l1_loss(target, prediction[..., :1])
    with pytest.raises(InputError, match=r"mask \(2, 4, 4\) does not fit"):
        mse_loss(target, prediction, mask=mask[:, 1:])
