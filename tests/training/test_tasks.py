"""The loss that a task computes, against the same loss by hand."""

import functools

import keras
import numpy as np
import pytest

from losses.segmentation import segmentation_loss
from tests.reference import balanced_cross_entropy_by_hand, tversky_costs_by_hand
from training.tasks import Segmentation

SETTINGS = {"false_positive_weight": 0.2, "false_negative_weight": 0.9, "focus": 2.0, "class_weights": [0.5, 1, 3]}
WEIGHTS = np.array(SETTINGS["class_weights"])


@pytest.fixture(scope="module")
def softmax():
    """A network that returns the softmax of its input."""
    image = keras.Input((4, 6, 3))
    return keras.Model(image, keras.layers.Softmax()(image))


@pytest.mark.parametrize(("name", "weights", "exponent"), [("focal_tversky", (0.2, 0.9), 0.5), ("dice", (0.5, 0.5), 1)])
@pytest.mark.parametrize("cross_entropy", [0.0, 0.4])
def test_segmentation_costs_what_its_loss_says(softmax, name, weights, exponent, cross_entropy):
    generator = np.random.default_rng(3)
    image = generator.normal(0, 1, (2, 4, 6, 3)).astype("float32")
    label = generator.integers(0, 3, (2, 4, 6))
    loss = functools.partial(segmentation_loss, name=name, cross_entropy_weight=cross_entropy, **SETTINGS)
    task = Segmentation(softmax, loss)
    batch = {"image": image, "label": label}
    found = float(task.compute_loss(batch, y_pred=task(batch, training=False), training=False))
    shares = np.exp(image) / np.exp(image).sum(-1, keepdims=True)
    expected = tversky_costs_by_hand(label, shares, *weights) ** exponent @ WEIGHTS
    assert found == pytest.approx(expected + cross_entropy * balanced_cross_entropy_by_hand(label, shares), rel=1e-4)
