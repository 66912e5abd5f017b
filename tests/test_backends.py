"""The same seed and data give the same networks, losses and gradients on every Keras backend.

`tests/test_backend_trainings.py` compares whole training runs.
"""

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.gradients import compiled, value_and_gradient
from tests.losses import test_synthesis

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "torch")  # compared with TensorFlow
COMMAND = "import sys, numpy; from tests import test_backends as tests; numpy.savez(sys.argv[1], **tests.outcome())"


def outcome():
    """Return what is compared; every backend runs this same function."""
    synthesis = {f"synthesis/{name}": values for name, values in test_synthesis.outcome().items()}
    return weights() | losses_and_gradients() | synthesis


def weights():
    """Return the initial weights of networks for slices and volumes, and their outputs for an image."""
    from models.unet import build_encoder, build_unet

    result = {}
    for rank in (2, 3):
        shape = (8,) * rank + (2,)
        images = np.random.default_rng(rank).normal(size=(2, *shape)).astype("float32")
        for name, head in (("encoder", "projection"), ("unet", "projection"), ("unet", "reconstruction")):
            build = {"encoder": build_encoder, "unet": build_unet}[name]
            network = build(shape, rank=rank, filters=(4, 8), head=head, seed=3)
            key = f"{name}_{head}_{rank}d"
            result[f"output/{key}"] = keras.ops.convert_to_numpy(compiled(network)(images))
            for variable in network.weights:
                result[f"weights/{key}/{variable.path}"] = keras.ops.convert_to_numpy(variable)
    return result


def losses_and_gradients():
    """Return value and gradient of every loss for the same random representations, maps or probabilities."""
    from losses.constrained_contrastive import constrained_contrastive_loss
    from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
    from losses.local_contrastive import local_contrastive_loss
    from losses.regression import masked_l1
    from losses.segmentation import balanced_cross_entropy, dice_loss, focal_tversky_loss, plain_cross_entropy

    generator = np.random.default_rng(0)
    patches, views = generator.normal(size=(2, 16, 6)), generator.normal(size=(2, 6, 5))
    maps, image = generator.normal(size=(2, 2, 8, 8, 4)), generator.random((2, 8, 8, 2))
    scores = np.exp(generator.normal(size=(2, 8, 8, 3)))
    classes, target = generator.integers(0, 3, (2, 16)), generator.integers(0, 3, (2, 8, 8))
    corrupted, anchors = generator.random((2, 8, 8, 1)) < 0.3, np.array([[0, 5, 9], [3, 15, -1]])
    near = functools.partial(constrained_contrastive_loss, anchors=anchors, nearest_patches=6)
    attracting = functools.partial(anatomical_contrastive_loss, same_part_attracts=True)
    foreground = np.where(classes > 0, classes, -1)
    probabilities = scores / scores.sum(-1, keepdims=True)
    losses = {
        "pairwise": (lambda x: near(x, classes), patches),
        "setwise": (lambda x: near(x, classes, comparison="setwise"), patches),
        "without_background": (lambda x: near(x, foreground, anchor_is_positive=False), patches),
        "simclr": (lambda x: simclr_loss(x[0], x[1]), views),
        "anatomical": (lambda x: anatomical_contrastive_loss(x, np.arange(6) % 3), views),
        "anatomical_attracting": (lambda x: attracting(x, np.arange(6) % 3), views),
        "local": (lambda x: local_contrastive_loss(x[0], x[1], region_size=2, regions=6, negatives=3, seed=1), maps),
        "masked_l1": (lambda x: masked_l1(x, image.astype("float32"), corrupted), generator.random(image.shape)),
        "focal_tversky": (lambda x: focal_tversky_loss(target, x), probabilities),
        "dice": (lambda x: dice_loss(target, x, include_background=False), probabilities),
        "cross_entropy": (lambda x: balanced_cross_entropy(target, x), probabilities),
        "plain_cross_entropy": (lambda x: plain_cross_entropy(target, x, class_weights=[1, 2, 3]), probabilities),
    }
    result = {}
    for name, (loss, argument) in losses.items():
        result[f"loss/{name}"], result[f"gradient/{name}"] = value_and_gradient(loss, argument.astype("float32"))
    return result


def start(backend, folder, *command, **environment):
    """Start Python with a backend, from the root of the repository."""
    # JAX spends most of this time on compiling, often the same steps again.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quick |= {"JAX_COMPILATION_CACHE_DIR": str(folder), "KERAS_BACKEND": backend}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | quick | environment)


def outcomes(backends, folder, command, **environment):
    """Run a command with all installed backends in parallel.

    Args:
        backends: Names of backends.
        folder: Folder for their results.
        command: Python code that writes the .npz file named by its first argument.
        **environment: Variables to set.

    Returns:
        Function from backend to a dictionary of arrays, which waits for them.
    """
    paths = {name: folder / f"{name}.npz" for name in backends if importlib.util.find_spec(name)}
    running = {name: start(name, folder / name, "-c", command, str(p), **environment) for name, p in paths.items()}

    def result(backend):
        if backend not in running:
            pytest.skip(f"{backend} is not installed")
        assert running[backend].wait(900) == 0
        with np.load(paths[backend]) as stored:
            return dict(stored)

    return result


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return outcomes(BACKENDS, tmp_path_factory.mktemp("backends"), COMMAND)


@pytest.fixture(scope="module")
def expected(others):  # computed while the other backends run
    return outcome()


@pytest.fixture(scope="module", params=BACKENDS)
def found(request, others, expected):
    return others(request.param)


def test_initial_weights_are_equal_to_the_bit(expected, found):
    names = [name for name in expected if name.startswith("weights/")]
    assert set(found) == set(expected) and len(names) > 50
    for name in names:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("what", ["output/", "loss/", "gradient/"])
def test_outputs_losses_and_gradients_agree(expected, found, what):
    for name in (name for name in expected if name.startswith(what)):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        assert np.any(expected[name] != 0), name


def test_synthesis_losses_and_their_gradients_agree(expected, found):
    names = [name for name in expected if name.startswith("synthesis/")]
    assert len(names) == 6
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
