import numpy as np
import pytest
from keras import ops

from losses.regression import masked_l1
from tests.gradients import central_differences_of_slices, gradient
from tests.reference import masked_l1_by_hand
from utils.checks import InputError


def images(seed=0, size=(6, 5), channels=2, share=0.3, mask_channels=1, batch=3):
    generator = np.random.default_rng(seed)
    shape = (batch, *size, channels)
    corrupted = generator.random((batch, *size, mask_channels)) < share
    return generator.normal(size=shape).astype("float32"), generator.random(shape).astype("float32"), corrupted


CASES = {
    "one mask for all contrasts": images(1),
    "a mask per contrast": images(2, mask_channels=2),
    "one contrast": images(3, channels=1),
    "a volume": images(4, size=(4, 3, 5)),
    "nothing corrupted": images(5, share=0),
    "everything corrupted": images(6, share=1.1),
}


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_reference(case):
    reconstruction, image, corrupted = CASES[case]
    found = ops.convert_to_numpy(masked_l1(reconstruction, image, corrupted))
    np.testing.assert_allclose(found, masked_l1_by_hand(reconstruction, image, corrupted), rtol=1e-5, atol=1e-7)
    slope = gradient(lambda x: masked_l1(x, image, corrupted), reconstruction)
    expected = central_differences_of_slices(lambda x: masked_l1_by_hand(x, image, corrupted), reconstruction)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_pixels_that_were_not_replaced_do_not_count():
    reconstruction, image, corrupted = images()
    before = ops.convert_to_numpy(masked_l1(reconstruction, image, corrupted))
    reconstruction[~np.broadcast_to(corrupted, image.shape)] = np.nan
    np.testing.assert_array_equal(ops.convert_to_numpy(masked_l1(reconstruction, image, corrupted)), before)
    slope = gradient(lambda x: masked_l1(x, image, corrupted), reconstruction)
    assert np.isfinite(slope).all() and not slope[~np.broadcast_to(corrupted, image.shape)].any()


def test_it_is_the_sum_of_the_paper_divided_by_the_number_of_corrupted_values():
    reconstruction, image, corrupted = images(7)
    mask = corrupted.astype("float64")
    paper = np.abs(mask * reconstruction - mask * image).sum(axis=(1, 2, 3))
    found = ops.convert_to_numpy(masked_l1(reconstruction, image, corrupted))
    np.testing.assert_allclose(found * corrupted.sum(axis=(1, 2, 3)) * 2, paper, rtol=1e-5)


def test_half_precision_is_computed_in_float32():
    reconstruction, image, corrupted = images(8)
    found = masked_l1(ops.cast(reconstruction, "bfloat16"), image, corrupted)
    assert found.dtype == masked_l1(reconstruction, image, corrupted).dtype
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), masked_l1_by_hand(reconstruction, image, corrupted), rtol=2e-2
    )


@pytest.mark.parametrize(
    "shapes", [(((2, 4, 4, 1), (2, 4, 4, 2), (2, 4, 4, 1))), ((2, 4, 4, 3),) * 2 + ((2, 4, 4, 2),)]
)
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(InputError, match="masked_l1: reconstruction .* must be equal"):
        masked_l1(*(np.zeros(shape, "float32") for shape in shapes))
