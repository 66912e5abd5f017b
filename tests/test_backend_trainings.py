"""Training gives the same results on every Keras backend, in 32 and 16 bits, interrupted or not.

`tests/test_backends.py` compares networks, losses and gradients, in seconds.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.models import test_remat
from tests.test_backends import BACKENDS, outcomes
from tests.training.loop import check_dispatches, check_halved, check_resumed, finetuned_in_phases
from tests.training.small import SharedSteps
from training.devices import use_precision

COMMAND = "import sys, numpy; from tests import test_backend_trainings as t; numpy.savez(sys.argv[1], **t.everything())"
METHODS = ("regression", "global", "anatomical", "local", "constrained")
STEPS, HALF_STEPS = 20, 12
# Tolerance of the validation loss after each step. Local contrast approaches 0 here, where relative errors grow.
HALF_TOLERANCE = {"regression": 0.02, "global": 0.02, "local": 0.05, "constrained": 0.02}


def everything():
    """Return everything that is computed on another backend, to compare with TensorFlow or to check by itself."""
    return curves() | loop() | {f"remat/{name}": values for name, values in test_remat.outcome().items()}


def curves():
    """Return what is compared with TensorFlow; every backend runs this same function."""
    return {f"curve/{method}": curve(method) for method in METHODS}


def curve(method, steps=STEPS):
    """Return training and validation loss after each step of one pretraining method, `(steps, 2)`."""
    from tests.training.small import settings

    schedule = settings(epochs=steps, steps=1, rate=1e-3, plateau_epochs=STEPS)
    with tempfile.TemporaryDirectory() as folder:
        network, history = trained(method, Path(folder), schedule)
    assert {weight.dtype for weight in network.weights} == {"float32"}
    return np.array([[row["loss"], row["val_loss"]] for row in history])


def trained(method, folder, schedule):
    """Pretrain a network of two levels on small slices; returns network and history."""
    from tests.training.test_training import pretrain

    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (16, 16, 16, 1))).astype("float32")
    return pretrain(method, images, maps.astype("int32"), folder, schedule)


def loop():
    """Run the parts of the training loop that depend on the backend: state between epochs, steps per dispatch."""
    from tests.training.loop import by_steps_per_dispatch, phases_stopped_and_resumed, stopped_and_resumed

    regression = functools.partial(trained, "regression")
    with tempfile.TemporaryDirectory() as folder:
        parts = {"stopped": stopped_and_resumed(SharedSteps().of(regression), Path(folder))}
        parts["phases"] = phases_stopped_and_resumed(Path(folder) / "phases")
        constrained = functools.partial(trained, "constrained")
        parts["dispatches"] = by_steps_per_dispatch(constrained, Path(folder) / "dispatches")
    return {f"loop/{part}/{name}": values for part, result in parts.items() for name, values in result.items()}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return outcomes(BACKENDS, tmp_path_factory.mktemp("backends"), COMMAND)


@pytest.fixture(scope="module")
def expected(others):  # computed while the other backends run
    return curves()


@pytest.fixture(scope="module", params=BACKENDS)
def found(request, others, expected):
    return others(request.param)


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


def test_finetuning_in_phases_resumes_and_learns_as_on_tensorflow(found, tmp_path):
    run = part_of(found, "loop/phases")
    check_resumed(run)
    _, history = finetuned_in_phases(tmp_path)
    np.testing.assert_allclose(run["whole/loss"], [row["loss"] for row in history], rtol=1e-2)


def test_the_learning_rate_is_halved_on_a_plateau(found):
    run = part_of(found, "loop/stopped")
    check_halved(run["whole/learning_rate"], run["whole/val_loss"])


def test_several_steps_in_a_dispatch_train_like_one_by_one(found):
    check_dispatches(part_of(found, "loop/dispatches"))


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
