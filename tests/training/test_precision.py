"""Mixed precision: 16-bit arithmetic in the network changes the losses little, and nothing else."""

import keras
import numpy as np
import pytest

from models.unet import build_unet
from tests.training.test_training import pretrain, settings
from training.devices import use_precision
from training.tasks import Regression

# Of the validation loss after each step. Local contrast soon comes near 0 here, where a share of the loss is little.
TOLERANCE = {"regression": 0.02, "global": 0.02, "local": 0.05, "constrained": 0.02}
STEPS = 12


@pytest.fixture
def mixed():
    use_precision(True)
    yield
    use_precision(False)


def history(method, folder):
    """Training and validation loss after each of 12 steps, `(12, 2)`."""
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (16, 16, 16, 1))).astype("float32")
    training = settings(epochs=STEPS, steps=1, rate=1e-3) | {"plateau_epochs": STEPS}
    network, rows = pretrain(method, images, maps.astype("int32"), folder, filters=[4, 8], training=training)
    assert {weight.dtype for weight in network.weights} == {"float32"}
    return np.array([[row["loss"], row["val_loss"]] for row in rows])


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    return {method: history(method, tmp_path_factory.mktemp(method)) for method in TOLERANCE}


@pytest.mark.parametrize("method", TOLERANCE)
def test_losses_stay_close_to_float32(method, exact, mixed, tmp_path):
    found = history(method, tmp_path)
    assert np.abs(found - exact[method]).max() > 0
    np.testing.assert_allclose(found[0, 0], exact[method][0, 0], rtol=0.02)  # the same weights
    np.testing.assert_allclose(found[:, 1], exact[method][:, 1], rtol=TOLERANCE[method])


def test_only_the_network_computes_in_16_bits(mixed):
    seen = {}

    class Spy(Regression):
        def forward(self, batch, training):
            seen.update({name: keras.backend.standardize_dtype(x.dtype) for name, x in batch.items()})
            return super().forward(batch, training)

    network = build_unet((8, 8, 1), filters=(4, 8), head="reconstruction")
    images = np.ones((2, 8, 8, 1), "float32")
    output, _ = Spy(network)({"image": images, "corrupted": images > 2, "noise": images})
    assert seen == {"image": "float32", "corrupted": "bool", "noise": "float32"}
    assert network.get_layer("encoder_1_conv_1").compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(output.dtype) == "float32"
