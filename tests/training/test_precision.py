"""Mixed precision: only the network computes in 16 bits. `test_backend_trainings.py` compares the losses."""

import keras
import numpy as np
import pytest

from models.unet import build_unet
from training.devices import use_precision
from training.tasks import Regression


@pytest.fixture
def mixed():
    use_precision(True)
    yield
    use_precision(False)


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
