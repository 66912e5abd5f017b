"""The same seed and data give the same networks, losses, gradients and trainings on every Keras backend."""

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.losses import test_synthesis
from tests.models import test_remat
from tests.training.loop import check_dispatches, check_halved, check_resumed, finetuned_in_phases
from training.devices import use_precision

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "torch")  # compared with TensorFlow
COMMAND = "import sys, numpy; from tests import test_backends as tests; numpy.savez(sys.argv[1], **tests.everything())"
METHODS = ("regression", "global", "anatomical", "local", "constrained")
STEPS, HALF_STEPS = 20, 12
# Of the validation loss after each step. Local contrast soon comes near 0 here, where a share of the loss is little.
HALF_TOLERANCE = {"regression": 0.02, "global": 0.02, "local": 0.05, "constrained": 0.02}
DISPATCHED = ("global", "constrained")


def everything():
    """What another backend is asked for: what is compared with TensorFlow, and what it shows by itself."""
    return outcome() | loop() | {f"remat/{name}": values for name, values in test_remat.outcome().items()}


def outcome():
    """Everything that is compared with TensorFlow; every backend imports and runs this very function."""
    synthesis = {f"synthesis/{name}": values for name, values in test_synthesis.outcome().items()}
    return weights() | losses_and_gradients() | synthesis | {f"curve/{method}": curve(method) for method in METHODS}


def weights():
    """Initial weights of networks for slices and volumes, and what they make of an image."""
    from models.unet import build_encoder, build_unet

    result = {}
    for rank in (2, 3):
        shape = (8,) * rank + (2,)
        images = np.random.default_rng(rank).normal(size=(2, *shape)).astype("float32")
        for name, head in (("encoder", "projection"), ("unet", "projection"), ("unet", "reconstruction")):
            build = {"encoder": build_encoder, "unet": build_unet}[name]
            network = build(shape, rank=rank, filters=(4, 8), head=head, seed=3)
            key = f"{name}_{head}_{rank}d"
            result[f"output/{key}"] = keras.ops.convert_to_numpy(network(images))
            for variable in network.weights:
                result[f"weights/{key}/{variable.path}"] = keras.ops.convert_to_numpy(variable)
    return result


def losses_and_gradients():
    """Value and gradient of every loss at the same random representations, maps or probabilities."""
    from losses.constrained_contrastive import constrained_contrastive_loss
    from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
    from losses.local_contrastive import local_contrastive_loss
    from losses.regression import masked_l1
    from losses.segmentation import balanced_cross_entropy, dice_loss, focal_tversky_loss, plain_cross_entropy
    from tests.gradients import gradient

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
        argument = argument.astype("float32")
        result[f"loss/{name}"] = keras.ops.convert_to_numpy(loss(keras.ops.convert_to_tensor(argument)))
        result[f"gradient/{name}"] = gradient(loss, argument)
    return result


def curve(method, steps=STEPS):
    """Training and validation loss after each step of one pretraining method, `(steps, 2)`."""
    from tests.training.small import settings

    training = settings(epochs=steps, steps=1, rate=1e-3) | {"plateau_epochs": STEPS}
    with tempfile.TemporaryDirectory() as folder:
        network, history = trained(method, Path(folder), training)
    assert {weight.dtype for weight in network.weights} == {"float32"}
    return np.array([[row["loss"], row["val_loss"]] for row in history])


def trained(method, folder, training):
    """Pretrain a network of two levels on small slices; returns network and history."""
    from tests.training.test_training import pretrain

    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (16, 16, 16, 1))).astype("float32")
    return pretrain(method, images, maps.astype("int32"), folder, filters=[4, 8], training=training)


def loop():
    """What a backend can break in the training loop: the state between epochs, and several steps in a dispatch."""
    from tests.training.loop import by_steps_per_dispatch, phases_stopped_and_resumed, stopped_and_resumed

    with tempfile.TemporaryDirectory() as folder:
        parts = {"stopped": stopped_and_resumed(functools.partial(trained, "regression"), Path(folder))}
        parts["phases"] = phases_stopped_and_resumed(Path(folder) / "phases")
        for method in DISPATCHED:
            parts[method] = by_steps_per_dispatch(functools.partial(trained, method), Path(folder) / method)
    return {f"loop/{part}/{name}": values for part, result in parts.items() for name, values in result.items()}


def start(backend, folder, *command, **environment):
    """Start Python under a backend, from the root of the repository."""
    # JAX spends most of these seconds on compiling, and on compiling the same steps again.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quick |= {"JAX_COMPILATION_CACHE_DIR": str(folder), "KERAS_BACKEND": backend}
    return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=os.environ | quick | environment)


def outcomes(backends, folder, command, **environment):
    """Run a command under all backends that are installed, side by side.

    Args:
        backends: Names of backends.
        folder: Where their results are written.
        command: Python code that writes an .npz file, named by its first argument.
        **environment: Variables to set.

    Returns:
        Function from backend to a dictionary of arrays; it waits until they are there.
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
def expected(others):  # what TensorFlow computes while the others do
    return outcome()


@pytest.fixture(scope="module", params=BACKENDS)
def found(request, others, expected):
    return others(request.param)


def test_initial_weights_are_equal_to_the_bit(expected, found):
    names = [name for name in expected if name.startswith("weights/")]
    by_itself = {name for name in found if name.startswith(("loop/", "remat/"))}
    assert set(found) - by_itself == set(expected) and len(names) > 50
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


@pytest.mark.parametrize("method", METHODS)
def test_loss_curves_agree(expected, found, method):
    name = f"curve/{method}"
    assert expected[name].shape == (STEPS, 2) and len(np.unique(expected[name][:, 1])) == STEPS
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-2)


@pytest.fixture
def mixed():
    use_precision(True)
    yield
    use_precision(False)


@pytest.mark.parametrize("method", HALF_TOLERANCE)
def test_losses_in_16_bits_stay_close_to_float32(method, expected, mixed):
    exact, found = expected[f"curve/{method}"][:HALF_STEPS], curve(method, HALF_STEPS)
    assert np.abs(found - exact).max() > 0
    np.testing.assert_allclose(found[0, 0], exact[0, 0], rtol=0.02)  # the same weights
    np.testing.assert_allclose(found[:, 1], exact[:, 1], rtol=HALF_TOLERANCE[method])


def part_of(found, part):
    start = f"{part}/"
    return {name.removeprefix(start): values for name, values in found.items() if name.startswith(start)}


def test_an_interrupted_run_ends_like_an_uninterrupted_one(found):
    check_resumed(part_of(found, "loop/stopped"))


def test_a_finetuning_in_phases_goes_on_where_it_stopped_and_learns_as_on_tensorflow(found, tmp_path):
    run = part_of(found, "loop/phases")
    check_resumed(run)
    _, history = finetuned_in_phases(tmp_path)
    np.testing.assert_allclose(run["whole/loss"], [row["loss"] for row in history], rtol=1e-2)


def test_the_learning_rate_is_halved_on_a_plateau(found):
    run = part_of(found, "loop/stopped")
    check_halved(run["whole/learning_rate"], run["whole/val_loss"])


@pytest.mark.parametrize("method", DISPATCHED)
def test_several_steps_in_a_dispatch_train_like_one_by_one(found, method):
    check_dispatches(part_of(found, f"loop/{method}"))


def test_a_rematerialised_network_computes_and_learns_what_the_plain_one_does(found):
    found = part_of(found, "remat")
    names = [name.removeprefix("plain/") for name in found if name.startswith("plain/")]
    assert len(names) > 80
    for name in names:
        test_remat.assert_close(found[f"remat/{name}"], found[f"plain/{name}"], name)


def test_a_rematerialised_network_keeps_only_the_inputs_of_levels(found):
    found = {name: int(value) for name, value in part_of(found, "remat/kept").items()}
    assert found["remat"] <= found["inputs"] + found["weights"]
    assert found["plain"] - found["weights"] > 3 * found["inputs"]
