import numpy as np
import pytest
from keras import ops

from losses.segmentation import (
    balanced_cross_entropy,
    dice_loss,
    focal_tversky_loss,
    plain_cross_entropy,
    segmentation_loss,
    tversky_loss,
)
from tests.gradients import central_differences, gradient
from tests.reference import balanced_cross_entropy_by_hand, plain_cross_entropy_by_hand, tversky_costs_by_hand
from utils.checks import InputError

LOSSES = {"dice": dice_loss, "tversky": tversky_loss, "focal": focal_tversky_loss}
WEIGHTS = {"dice": (0.5, 0.5), "tversky": (0.3, 0.7), "focal": (0.3, 0.7)}
EXPONENT = {"dice": 1, "tversky": 1, "focal": 3 / 4}


def batch(seed=0, shape=(2, 4, 4), classes=3):
    generator = np.random.default_rng(seed)
    target = generator.integers(0, classes, shape)
    return target, generator.dirichlet(np.ones(classes), shape).astype("float32")


def by_hand(name, target, probabilities):
    return tversky_costs_by_hand(target, probabilities, *WEIGHTS[name]) ** EXPONENT[name]


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 3, 3), (1, 2)])
@pytest.mark.parametrize("name", LOSSES)
def test_value_equals_the_reference(name, shape):
    target, probabilities = batch(1, shape)
    expected = by_hand(name, target, probabilities)
    assert float(LOSSES[name](target, probabilities)) == pytest.approx(expected.sum(), rel=1e-5)
    weighted = LOSSES[name](target, probabilities, class_weights=[0.2, 1, 3])
    assert float(weighted) == pytest.approx(expected @ [0.2, 1, 3], rel=1e-5)
    foreground = LOSSES[name](target, probabilities, class_weights=[0.2, 1, 3], include_background=False)
    assert float(foreground) == pytest.approx(expected[1:] @ [1, 3], rel=1e-5)
    per_image = ops.convert_to_numpy(LOSSES[name](target, probabilities, reduce="image"))
    each = [by_hand(name, *pair).sum() for pair in zip(target, probabilities, strict=True)]
    np.testing.assert_allclose(per_image, each, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_central_differences_of_the_reference(name):
    target, probabilities = batch(2)
    found = gradient(lambda p: LOSSES[name](target, p), probabilities)
    expected = central_differences(lambda p: by_hand(name, target, p), probabilities)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_hot_and_class_indices_agree(name):
    target, probabilities = batch(3)
    expected = float(LOSSES[name](target, probabilities))
    assert float(LOSSES[name](np.eye(3)[target], probabilities)) == pytest.approx(expected)
    assert float(LOSSES[name](target.astype("uint8"), probabilities)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_costs_nothing_and_keeps_a_finite_gradient(name):
    target, _ = batch(4)
    perfect = np.eye(3, dtype="float32")[target]
    assert float(LOSSES[name](target, perfect)) == 0
    assert np.isfinite(gradient(lambda p: LOSSES[name](target, p), perfect)).all()


@pytest.mark.parametrize("focus", [0.5, 1.0, 4 / 3, 3.0])
def test_focal_power_is_continuous_and_its_gradient_finite_near_a_perfect_class(focus):
    target = np.array([[0, 1]])
    values = []
    for error in (0.0, 1e-9, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6, 1e-4):
        probabilities = np.array([[[1 - error, error], [error, 1 - error]]], "float32")
        values.append(float(focal_tversky_loss(target, probabilities, focus=focus)))
        assert np.isfinite(gradient(lambda p: focal_tversky_loss(target, p, focus=focus), probabilities)).all()
    assert values[0] == 0
    assert np.all(np.diff(values) >= 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_absent_in_target_and_prediction_costs_nothing(name):
    target, probabilities = batch(5)
    wider = np.concatenate([probabilities, np.zeros((2, 4, 4, 1), "float32")], axis=-1)
    assert float(LOSSES[name](target, wider)) == pytest.approx(float(LOSSES[name](target, probabilities)))
    for trace in (0.0, 1e-30, 1e-12):
        wider[..., 3] = trace
        assert np.isfinite(gradient(lambda p: LOSSES[name](target, p), wider)).all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_absent_in_one_of_the_two_costs_one(name):
    background = np.zeros((1, 4, 4), int)
    foreground = np.eye(2, dtype="float32")[background + 1]
    loss = LOSSES[name](background, foreground)
    assert float(loss) == pytest.approx(2)
    assert np.isfinite(gradient(lambda p: LOSSES[name](background, p), foreground)).all()


def test_whole_batch_counts_as_one_image():
    target, probabilities = batch(6)
    joined = float(dice_loss(target.reshape(1, 8, 4), probabilities.reshape(1, 8, 4, 3)))
    assert float(dice_loss(target, probabilities)) == pytest.approx(joined, rel=1e-6)


def test_missed_pixels_cost_more_than_false_ones():
    target = np.array([[0, 0, 1, 1]])
    missed = np.eye(2, dtype="float32")[[[0, 0, 0, 1]]]
    false = np.eye(2, dtype="float32")[[[0, 1, 1, 1]]]
    foreground = {"include_background": False}
    assert float(tversky_loss(target, missed, **foreground)) > float(tversky_loss(target, false, **foreground))


def test_half_precision_probabilities_are_summed_in_float32():
    target = np.zeros((1, 300, 300), int)
    probabilities = np.full((1, 300, 300, 2), 0.5, "float16")  # a float16 sum would overflow
    assert float(dice_loss(target, probabilities)) == pytest.approx(1 / 3 + 1, rel=1e-5)


def test_impossible_arguments_are_refused():
    target, probabilities = batch(0)
    with pytest.raises(InputError, match="fits neither class indices"):
        dice_loss(target[:, :3], probabilities)
    with pytest.raises(InputError, match="2 weights for 3 classes"):
        dice_loss(target, probabilities, class_weights=[1, 2])
    with pytest.raises(InputError, match="choose 'batch' or 'image'"):
        dice_loss(target, probabilities, reduce="slice")
    with pytest.raises(InputError, match="focus is 0"):
        focal_tversky_loss(target, probabilities, focus=0)


CROSS_ENTROPIES = {
    "balanced": (balanced_cross_entropy, balanced_cross_entropy_by_hand),
    "plain": (plain_cross_entropy, plain_cross_entropy_by_hand),
}


@pytest.mark.parametrize("weights", [None, [0.2, 1, 3]])
@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 2, 3, 2), (1, 1)])
@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_cross_entropy_equals_the_reference_in_value_and_gradient(name, shape, weights):
    loss, by_hand = CROSS_ENTROPIES[name]
    target, probabilities = batch(5, shape)
    value = float(loss(target, probabilities, class_weights=weights))
    assert value == pytest.approx(by_hand(target, probabilities, weights), rel=1e-5)
    found = gradient(lambda p: loss(target, p, class_weights=weights), probabilities)
    expected = central_differences(lambda p: by_hand(target, p, weights), probabilities)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CROSS_ENTROPIES)
def test_cross_entropy_stays_finite_where_the_class_has_no_probability(name):
    loss, _ = CROSS_ENTROPIES[name]
    target, certain = np.zeros((1, 2, 2), int), np.zeros((1, 2, 2, 3), "float32")
    certain[..., 1] = 1
    assert float(loss(target, certain)) == pytest.approx(-np.log(1e-7), rel=1e-4)
    assert np.isfinite(gradient(lambda p: loss(target, p), certain)).all()


def test_plain_cross_entropy_counts_pixels_and_the_balanced_one_classes():
    target = np.zeros((1, 10, 10), int)
    target[0, 0, 0] = 1
    probabilities = np.where(target[..., None] == [0, 1], 0.5, 0.5).astype("float32")
    probabilities[0, 0, 0] = [0.9, 0.1]
    plain, balanced = (float(loss(target, probabilities)) for loss, _ in reversed(CROSS_ENTROPIES.values()))
    assert plain == pytest.approx((99 * np.log(2) + np.log(10)) / 100, rel=1e-5)
    assert balanced == pytest.approx((np.log(2) + np.log(10)) / 2, rel=1e-5)


def test_class_weights_that_do_not_fit_are_refused_by_cross_entropy_too():
    for loss, _ in CROSS_ENTROPIES.values():
        with pytest.raises(InputError, match="2 weights for 3 classes"):
            loss(*batch(0), class_weights=[1, 2])


@pytest.mark.parametrize("kind", CROSS_ENTROPIES)
def test_the_loss_is_chosen_and_combined_by_name(kind):
    target, probabilities = batch(4)
    weights, focal = [0.5, 1, 3], {"false_positive_weight": 0.2, "false_negative_weight": 0.9, "focus": 2.0}
    _, by_hand = CROSS_ENTROPIES[kind]
    added = by_hand(target, probabilities)
    costs = {
        "focal_tversky": tversky_costs_by_hand(target, probabilities, 0.2, 0.9) ** 0.5 @ weights,
        "dice": tversky_costs_by_hand(target, probabilities, 0.5, 0.5) @ weights,
        "cross_entropy": by_hand(target, probabilities, weights),
    }
    for name, cost in costs.items():
        for weight in (0.0, 0.4):
            settings = {"class_weights": weights, "cross_entropy": kind, "cross_entropy_weight": weight} | focal
            found = segmentation_loss(target, probabilities, name=name, **settings)
            assert float(found) == pytest.approx(cost + weight * added, rel=1e-5)


def test_names_that_no_loss_has_are_refused():
    for settings, message in (
        ({"name": "jaccard"}, "segmentation loss is 'jaccard'; choose from 'focal_tversky', 'dice', 'cross_entropy'"),
        ({"cross_entropy": "focal"}, "cross_entropy is 'focal'; choose from 'balanced', 'plain'"),
    ):
        with pytest.raises(InputError, match=message):
            segmentation_loss(*batch(), **settings)
