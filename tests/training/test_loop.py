"""Warnings about representations that have collapsed or have no negatives: when, how often, and their text."""

import csv
import logging

import keras
import numpy as np
import pytest

from tests.training.small import constrained, settings
from training.effective import PatchCounts
from training.health import LEAST_SPREAD, MOST_WITHOUT_NEGATIVE, health_complaints
from training.loop import Keeper, RunOptions
from training.schedules import Schedule

SPREAD, SHARE = "val_feature_spread", "val_share_without_negative"


class Task:
    """The parts of a task that a `Keeper` needs."""

    def __init__(self):
        self.network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="dense")])
        self.optimizer = keras.optimizers.SGD(0.1)
        self.optimizer.build(self.network.trainable_variables)


class Training:
    epoch = 0


@pytest.fixture
def warnings(caplog):
    """Return a function that gives the warnings since its last call."""

    def read():
        messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        caplog.clear()
        return messages

    return read


@pytest.fixture
def keeper(tmp_path):
    return make_keeper(tmp_path)


def make_keeper(folder, epochs=100):
    schedule = Schedule(epochs, 0.1, batch_size=4, plateau_epochs=100)
    return Keeper(Task(), Training(), schedule, RunOptions(folder, "tag", "pretraining/constrained", seed=1))


def end_epoch(keeper, loss=None, **measures):
    """End an epoch with a validation loss that decreases by default; measures None: no validation."""
    epoch = len(keeper.history)
    validation = {"val_loss": 10 - epoch if loss is None else loss, **measures} if measures else {}
    keeper.on_epoch_end(epoch, {"loss": 1.0, **validation})


def test_the_run_the_epoch_the_value_the_meaning_and_the_cure_are_named(keeper, warnings):
    end_epoch(keeper, **{SPREAD: 0.8, SHARE: 0.0})
    assert warnings() == []
    end_epoch(keeper, **{SPREAD: 0.0123, SHARE: 0.75})
    spread, share = warnings()
    assert spread.startswith("pretraining/constrained: epoch 2: val_feature_spread is 0.0123, below 0.05: ")
    for word in ("collapsed", "learning_rate", "temperature", "batch_size", "constraint maps"):
        assert word in spread
    assert share.startswith("pretraining/constrained: epoch 2: val_share_without_negative is 0.75, above 0.5: ")
    for word in ("cost 0", "nearest_patches", "clusters"):
        assert word in share


@pytest.mark.parametrize(
    ("column", "good", "bad"), [(SPREAD, LEAST_SPREAD, 0.0499), (SHARE, MOST_WITHOUT_NEGATIVE, 0.501)]
)
def test_each_crossing_warns_once(keeper, warnings, column, good, bad):
    told = []
    for value in (bad, bad, good, good, bad, bad):
        end_epoch(keeper, **{column: value})
        told.append(len(warnings()))
    assert told == [1, 0, 0, 0, 1, 0]


def test_epochs_without_validation_are_no_recovery(keeper, warnings):
    told = []
    for measures in ({SPREAD: 0.01}, {}, {SPREAD: 0.01}, {}, {}, {SPREAD: 0.3}, {}, {SPREAD: 0.01}):
        end_epoch(keeper, **measures)
        told.append(len(warnings()))
    assert told == [1, 0, 0, 0, 0, 0, 0, 1]


def test_a_resumed_run_does_not_repeat_what_was_said(keeper, tmp_path, warnings):
    end_epoch(keeper, **{SPREAD: 0.01})
    keeper.save()
    warnings()
    resumed = make_keeper(tmp_path)
    assert resumed.resume() == 1
    end_epoch(resumed, **{SPREAD: 0.01})
    assert warnings() == []


def test_the_end_speaks_of_the_weights_that_are_kept(keeper, warnings):
    end_epoch(keeper, loss=3.0, **{SPREAD: 0.6})
    end_epoch(keeper, loss=0.0, **{SPREAD: 0.6, SHARE: 0.9})  # most anchors cost 0: the lowest loss of all
    end_epoch(keeper, loss=2.0, **{SPREAD: 0.6, SHARE: 0.1})
    warnings()
    keeper.finish()
    (message,) = warnings()
    assert message.startswith(
        "pretraining/constrained: the weights kept, of epoch 2: val_share_without_negative is 0.9"
    )


def test_the_end_tells_a_collapse_after_the_best_epoch(keeper, warnings):
    end_epoch(keeper, loss=3.0, **{SPREAD: 0.6})
    end_epoch(keeper, loss=4.6, **{SPREAD: 0.001})
    end_epoch(keeper)
    warnings()
    keeper.finish()
    (message,) = warnings()
    assert message.startswith("pretraining/constrained: the last epoch, 2: val_feature_spread is 0.001")
    assert message.endswith("(not so in epoch 1, whose weights are kept)")


def test_the_end_says_the_same_thing_only_once(keeper, warnings):
    for _ in range(2):
        end_epoch(keeper, **{SPREAD: 0.001})
    warnings()
    keeper.finish()
    assert len(warnings()) == 1


def test_a_healthy_run_and_one_without_measures_say_nothing(tmp_path, warnings):
    for name, measures in (("healthy", {SPREAD: 0.5, SHARE: 0.2}), ("without", {"val_other": 0.0}), ("blind", {})):
        keeper = make_keeper(tmp_path / name)
        for _ in range(3):
            end_epoch(keeper, **measures)
        keeper.finish()
    assert warnings() == []
    assert health_complaints({}) == {}


def test_every_measure_of_the_validation_set_becomes_a_column(keeper, tmp_path):
    end_epoch(keeper, val_alignment=0.25, val_uniformity=-2.5, val_feature_spread=0.5)
    end_epoch(keeper)
    keeper.finish()
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [rows[0][f"val_{name}"] for name in ("alignment", "uniformity", "feature_spread")] == ["0.25", "-2.5", "0.5"]
    assert rows[1]["val_alignment"] == ""


def test_a_training_on_one_class_warns(tmp_path, warnings):
    """Constraint maps have a single class: no anchor has a negative, and the loss is 0 from the start."""
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype("float32")
    maps = np.ones((4, 16, 16), "int32")
    constrained((images, maps), tmp_path, schedule=settings(epochs=2, steps=1), counts=PatchCounts(5, 3))
    at_crossing, at_end = (message for message in warnings() if "val_share_without_negative is 1, above" in message)
    assert at_crossing.startswith("test: epoch 1: ") and at_end.startswith("test: the weights kept, of epoch 1: ")
