"""Several networks and mirrored images as one network."""

import numpy as np
import pytest

from evaluation.prediction.ensembles import Ensemble


class Weighted:
    """Stands in for a network: multiplies each pixel by a weight of its position, and counts calls."""

    def __init__(self, weights):
        self.weights, self.calls = weights, 0

    def predict_on_batch(self, images):
        self.calls += 1
        return images * self.weights


def test_one_network_without_flips_gives_its_own_output_bit_by_bit():
    images = np.random.default_rng(0).random((2, 4, 6, 1), np.float32)
    network = Weighted(np.random.default_rng(1).random((4, 6, 1), np.float32))
    np.testing.assert_array_equal(Ensemble([network]).predict_on_batch(images), network.predict_on_batch(images))


def test_networks_have_equal_weight():
    images = np.ones((1, 2, 2, 1), np.float32)
    networks = [Weighted(np.float32(number)) for number in (1, 2, 6)]
    np.testing.assert_array_equal(Ensemble(networks).predict_on_batch(images), 3 * images)


@pytest.mark.parametrize(("flips", "count"), [((1,), 2), ((2,), 2), ((1, 2), 4), ((2, 1), 4)])
@pytest.mark.parametrize("shape", [(2, 4, 6, 1), (1, 4, 6, 3, 2)], ids=["slices", "volumes"])
def test_every_combination_of_flips_is_predicted_and_turned_back(shape, flips, count):
    """Each pixel gets its value times the mean weight of the positions that it was mirrored to."""
    generator = np.random.default_rng(2)
    images, weights = generator.random(shape, np.float32), generator.random(shape[1:], np.float32)
    network = Weighted(weights)
    made = Ensemble([network], flips).predict_on_batch(images)
    mean = weights
    for axis in flips:
        mean = (mean + np.flip(mean, axis - 1)) / 2
    np.testing.assert_allclose(made, images * mean, rtol=1e-5)
    assert network.calls == count and made.dtype == np.float32
