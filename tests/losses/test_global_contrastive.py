import numpy as np
import pytest
from keras import ops

from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
from tests.gradients import central_differences, gradient
from tests.reference import anatomical_by_hand, cosine, simclr_by_hand
from utils.checks import InputError


def views(seed=0, number=2, images=5, features=4):
    return np.random.default_rng(seed).normal(size=(number, images, features)).astype("float32")


@pytest.mark.parametrize("temperature", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("images", [1, 2, 5])
def test_simclr_equals_the_reference(images, temperature):
    view_a, view_b = views(images, images=images)
    found = ops.convert_to_numpy(simclr_loss(view_a, view_b, temperature=temperature))
    expected = simclr_by_hand(view_a, view_b, temperature)
    assert found.shape == (2 * images,)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 / temperature)


def test_simclr_gradient_equals_central_differences_of_the_reference():
    view_a, view_b = views(3)
    found = gradient(lambda x: simclr_loss(x, view_b), view_a)
    expected = central_differences(lambda x: simclr_by_hand(x, view_b), view_a)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_simclr_of_a_zero_vector_has_a_finite_gradient():
    view_a, view_b = views(4)
    view_a[0] = 0
    for temperature in (0.01, 10.0):
        found = gradient(lambda x, t=temperature: simclr_loss(x, view_b, temperature=t), view_a)
        assert np.isfinite(found).all()
        assert not found[0].any()


def test_simclr_of_agreeing_views_is_lowest():
    view_a, view_b = views(5)
    assert np.mean(simclr_loss(view_a, view_a)) < np.mean(simclr_loss(view_a, view_b))


@pytest.mark.parametrize("attracts", [False, True])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("partitions", [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4], [2, 2, 2, 2, 2], [0, 0, 0, 1, 1]])
def test_anatomical_loss_equals_the_reference(partitions, number, attracts):
    images, partitions = views(6, number), np.array(partitions)
    for temperature in (0.01, 0.1, 10.0):
        loss = anatomical_contrastive_loss(images, partitions, temperature=temperature, same_part_attracts=attracts)
        expected = anatomical_by_hand(images, partitions, temperature, attracts)
        np.testing.assert_allclose(ops.convert_to_numpy(loss), expected, rtol=1e-5, atol=1e-6 / temperature)


@pytest.mark.parametrize("attracts", [False, True])
def test_anatomical_gradient_equals_central_differences_of_the_reference(attracts):
    images, partitions = views(7, 3), np.array([0, 1, 0, 2, 1])
    found = gradient(lambda x: anatomical_contrastive_loss(x, partitions, same_part_attracts=attracts), images)
    expected = central_differences(lambda x: anatomical_by_hand(x, partitions, same_part_attracts=attracts), images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_slices_of_the_same_partition_do_not_repel():
    images, partitions = views(8), np.array([0, 1, 0, 2, 1])
    found = gradient(lambda x: anatomical_contrastive_loss(x, partitions)[0], images)
    assert found[:, 0].any() and found[:, 1].any()
    assert not found[:, 2].any()


def test_slices_of_the_same_partition_attract_where_that_is_asked_for():
    images, partitions = views(8), np.array([0, 1, 0, 2, 1])
    found = gradient(lambda x: anatomical_contrastive_loss(x, partitions, same_part_attracts=True)[0], images)
    for view in (0, 1):  # a step against the gradient makes the other slice more similar to the first
        closer = images[view, 2] - 0.01 * found[view, 2]
        assert cosine(closer, images[view, 0]) + cosine(closer, images[1 - view, 0]) > (
            cosine(images[view, 2], images[view, 0]) + cosine(images[view, 2], images[1 - view, 0])
        )


def test_impossible_arguments_are_refused():
    view_a, view_b = views()
    with pytest.raises(InputError, match="view_b: axis B"):
        simclr_loss(view_a, view_b[:2])
    with pytest.raises(InputError, match="must be positive"):
        simclr_loss(view_a, view_b, temperature=0)
    with pytest.raises(InputError, match="at least 2"):
        anatomical_contrastive_loss(views(number=1), np.zeros(5, int))
    with pytest.raises(InputError, match="partitions: axis B"):
        anatomical_contrastive_loss(views(), np.zeros(4, int))
