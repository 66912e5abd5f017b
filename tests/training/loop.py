"""Runs in which the training loop stops, resumes, and dispatches several steps at once, on every backend."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from tests.training.small import settings
from training import batches
from training import loop as checkpoints

RATE, EPOCHS = 0.3, 8  # a rate at which the loss fluctuates: most epochs bring no improvement


def stopped_and_resumed(train, folder):
    """Train without interruption, and with two: during the third epoch, and at the end of the fourth.

    Args:
        train: Function of a folder and of a schedule; returns network and history.
        folder: Folder for the runs `whole/` and `cut/`.

    Returns:
        Dictionary of arrays: validation losses, rates and weights as `whole/...` and `resumed/...`, and `kept`, the
        epochs in the checkpoint after each interruption.
    """
    kept = []
    with pytest.raises(KeyboardInterrupt), within_the_third_epoch():
        train(folder / "cut", settings(epochs=EPOCHS, rate=RATE))
    kept.append(epochs_kept(folder / "cut"))
    with pytest.raises(KeyboardInterrupt), at_the_end_of_the_fourth_epoch():
        train(folder / "cut", settings(epochs=EPOCHS, rate=RATE))
    kept.append(epochs_kept(folder / "cut"))
    result = {"kept": np.array(kept)}
    for name, place in (("whole", folder / "whole"), ("resumed", folder / "cut")):
        result |= described(name, *train(place, settings(epochs=EPOCHS, rate=RATE)))
    return result


def phases_stopped_and_resumed(folder):
    """Finetune in phases, without interruption and with two as above, during the head phase and after it."""
    kept = []
    for interruption in (within_the_third_epoch, at_the_end_of_the_fourth_epoch):
        with pytest.raises(KeyboardInterrupt), interruption():
            finetuned_in_phases(folder / "cut")
        kept.append(epochs_kept(folder / "cut"))
    result = {"kept": np.array(kept)}
    for name, place in (("whole", folder / "whole"), ("resumed", folder / "cut")):
        result |= described(name, *finetuned_in_phases(place))
    return result


def finetuned_in_phases(folder):
    """Train the head first, then all layers, with warm-up, decreasing rate and layer decay."""
    from tests.training.test_schedules import SETTINGS, train, trainer

    generator = np.random.default_rng(0)
    slices = generator.random((24, 16, 16, 1)).astype("float32"), generator.integers(0, 4, (24, 16, 16))
    cell = trainer(**(SETTINGS["best"] | {"epochs": EPOCHS}))
    history, _ = train(cell, slices, folder)
    return cell.network, history


def described(name, network, history):
    columns = {key: np.array([row[key] for row in history]) for key in ("loss", "val_loss", "learning_rate")}
    columns |= {f"weights/{number}": values for number, values in enumerate(network.get_weights())}
    return {f"{name}/{key}": values for key, values in columns.items()}


def epochs_kept(folder):
    with np.load(folder / "checkpoint.npz") as kept:
        return len(json.loads(str(kept["state"]))["history"])


@contextmanager
def within_the_third_epoch():
    """Interrupt during the third epoch; only the interruption writes a checkpoint."""

    def interrupt(keeper, batch, logs=None):
        if len(keeper.history) == 2 and batch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as context:
        context.setattr(checkpoints.Keeper, "on_train_batch_end", interrupt)
        context.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 1e9)
        yield


@contextmanager
def at_the_end_of_the_fourth_epoch():
    """Interrupt after the losses are known and before they are saved; every epoch writes a checkpoint."""
    report = checkpoints.Keeper._report

    def interrupt(keeper, epoch, row):
        if epoch == 4:
            raise KeyboardInterrupt
        report(keeper, epoch, row)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(checkpoints.Keeper, "_report", interrupt)
        context.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
        yield


def check_resumed(result):
    """Check that epochs before each interruption are kept, and that the result is bit-identical."""
    np.testing.assert_array_equal(result["kept"], [2, 3])
    names = [name.removeprefix("whole/") for name in result if name.startswith("whole/")]
    assert len(names) > 20 and len(result["whole/val_loss"]) == EPOCHS
    for name in names:
        np.testing.assert_array_equal(result[f"resumed/{name}"], result[f"whole/{name}"], err_msg=name)


def check_halved(rates, losses, plateau=2):
    """Check that the rate is halved after every `plateau` epochs without a better loss."""
    expected, rate, best, since = [], RATE, float("inf"), 0
    for loss in losses:
        expected.append(rate)
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == plateau:
            rate, since = rate / 2, 0
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[-1] < RATE


def by_steps_per_dispatch(train, folder):
    """Train with one step per dispatch and with three: five steps are 3 + 2, eight slices are 2 x 4.

    Args:
        train: As above.
        folder: Folder for the runs.

    Returns:
        Dictionary of arrays: losses and weights `1/...` and `3/...`.
    """
    result = {}
    for number in (1, 3):
        with pytest.MonkeyPatch.context() as context:
            context.setattr(batches, "steps_per_dispatch", lambda steps, smaller, number=number: number)
            run = train(folder / str(number), settings(epochs=2, steps=5, rate=1e-3))
        result |= described(str(number), *run)
    return result


def check_dispatches(result):
    names = [name.removeprefix("1/") for name in result if name.startswith("1/")]
    assert len(names) > 10
    for name in names:
        tolerance = {"atol": 1e-4} if name.startswith("weights/") else {"rtol": 1e-4}
        np.testing.assert_allclose(result[f"1/{name}"], result[f"3/{name}"], err_msg=name, **tolerance)
