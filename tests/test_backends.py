"""The same seed and data give the same network, losses and gradients on every Keras backend."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "import sys, numpy; from tests.test_backends import outcome; numpy.savez(sys.argv[1], **outcome())"


def outcome():
    """Compute values and gradients of network and losses; every backend imports and runs this very function."""
    from losses.constrained_contrastive import constrained_contrastive_loss
    from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
    from losses.segmentation import focal_tversky_loss
    from models.unet import build_unet
    from tests.gradients import gradient

    generator = np.random.default_rng(0)
    images = generator.normal(size=(2, 16, 16, 2)).astype("float32")
    classes, target = generator.integers(0, 3, (2, 16)), generator.integers(0, 3, (2, 16, 16))
    anchors = np.array([[0, 5, 9], [3, 15, -1]])
    build = {"filters": (4, 8, 8), "seed": 3}
    patches = keras.ops.convert_to_numpy(build_unet((16, 16, 2), head="projection", patch_size=4, **build)(images))
    probabilities = keras.ops.convert_to_numpy(build_unet((16, 16, 2), outputs=3, **build)(images))
    losses = {
        "pairwise": (lambda x: constrained_contrastive_loss(x, classes, anchors, nearest_patches=6), patches),
        "setwise": (
            lambda x: constrained_contrastive_loss(x, classes, anchors, nearest_patches=6, comparison="setwise"),
            patches,
        ),
        "simclr": (lambda x: simclr_loss(x[0], x[1]), patches),
        "anatomical": (lambda x: anatomical_contrastive_loss(x, classes[0]), patches),
        "focal": (lambda x: focal_tversky_loss(target, x), probabilities),
    }
    result = {"patches": patches, "probabilities": probabilities}
    for name, (loss, argument) in losses.items():
        result[name] = keras.ops.convert_to_numpy(loss(keras.ops.convert_to_tensor(argument)))
        result[f"{name}_gradient"] = gradient(loss, argument)
    return result


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_agrees(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {**os.environ, "KERAS_BACKEND": backend}
    path = tmp_path / "outcome.npz"
    subprocess.run([sys.executable, "-c", COMMAND, str(path)], cwd=ROOT, env=environment, check=True, timeout=300)
    expected = outcome()
    with np.load(path) as found:
        assert set(found.files) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)
