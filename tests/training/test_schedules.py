"""Phases and rates of training: against slow formulas, against plain Adam, and after an interruption."""

import functools
import math

import keras
import numpy as np
import pytest

from models.unet import build_unet
from models.weights import Pretrained, read_weights, weights_of
from tests.training.small import run_in, segmentation_trainer, settings
from training import loop as checkpoints
from training.optimizers import LayerwiseAdam, levels_from_output
from training.schedules import Schedule
from utils.config.sections import FinetuningTrainingSection

CUT, DATA = "cut", (np.arange(16), np.arange(6))


def rates_by_hand(kind, epochs, rate, warm_up=0.0, head_first=0.0, head_rate=None):
    """Return all rates of a training run, by walking through its phases."""
    rates = []
    head = max(1, round(head_first * epochs)) if head_first else 0
    for _ in range(head):
        rates.append(rate if head_rate is None else head_rate)
    rising = max(1, round(warm_up * epochs)) if warm_up else 0
    for number in range(1, rising + 1):
        rates.append(rate * number / (rising + 1))
    rest = epochs - len(rates)
    for number in range(rest):
        t = number / rest
        rates.append(rate * {"cosine": 0.5 * (1 + math.cos(math.pi * t)), "poly": (1 - t) ** 0.9, "plateau": 1}[kind])
    return rates


@pytest.mark.parametrize("kind", ["plateau", "cosine", "poly"])
@pytest.mark.parametrize("epochs", [1, 2, 7, 40])
@pytest.mark.parametrize("shares", [{}, {"warm_up": 0.2}, {"head_first": 0.3}, {"warm_up": 0.1, "head_first": 0.25}])
def test_rates_are_those_of_the_formula(kind, epochs, shares):
    schedule = Schedule(
        epochs, 3e-3, 4, schedule=kind, head_learning_rate=2e-2 if "head_first" in shares else None, **shares
    )
    if schedule.full_from >= epochs:
        pytest.skip("the config refuses these")
    expected = rates_by_hand(kind, epochs, 3e-3, head_rate=schedule.head_learning_rate, **shares)
    found = [schedule.rate(epoch) for epoch in range(epochs)]
    if kind == "plateau":  # from there on, the loop keeps the rate
        assert all(rate is None for rate in found[schedule.full_from + 1 :])
        found = [rate or 3e-3 for rate in found]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_defaults_are_those_of_the_config():
    section = FinetuningTrainingSection(epochs=5, batch_size=4, learning_rate=1e-3)
    assert Schedule.of(section.model_dump()) == Schedule(5, 1e-3, 4)
    looks = section.model_dump() | {"evaluate_every": 2, "steps_per_epoch": 7}
    assert Schedule.of(looks) == Schedule(5, 1e-3, 4, steps_per_epoch=7, evaluate_every=2)


def test_a_falling_rate_begins_full_and_ends_near_zero():
    for kind in ("cosine", "poly"):
        schedule = Schedule(1000, 1.0, 4, schedule=kind)
        rates = [schedule.rate(epoch) for epoch in range(1000)]
        assert rates[0] == 1 and 0 < rates[-1] < 3e-3 and all(np.diff(rates) < 0)


def test_levels_count_from_the_output_back_to_the_stem():
    names = ["encoder_1_conv_1", "encoder_3_norm_2", "decoder_1_up", "decoder_2_conv_2", "segmentation_conv", "image"]
    assert list(levels_from_output(names).values()) == [5, 3, 2, 1, 0, 0]


@functools.cache
def compiled(is_layerwise):
    """Return a trainer with one compiled step for all schedules."""
    return segmentation_trainer(settings(layer_decay=0.9 if is_layerwise else 1.0))


def trainer(epochs=6, rate=1e-2, is_layerwise=None, **training):
    schedule = settings(epochs=epochs, rate=rate, **training)
    cell = compiled(schedule.is_layerwise if is_layerwise is None else is_layerwise)
    cell.schedule = schedule
    return cell


def train(trainer, slices, folder, pretrained=None):
    images, maps = slices
    trainer.use(images, (maps == 3).astype("uint8"))
    trainer.start_from(seed=0, pretrained=pretrained)
    history = trainer.train(*DATA, run_in(folder, seed=0))
    return history, {w.path: np.array(keras.ops.convert_to_numpy(w)) for w in trainer.network.weights}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_scales_of_one_are_adam_to_the_bit(slices, tmp_path):
    plain, scaled = trainer(is_layerwise=False), trainer(is_layerwise=True)
    assert type(plain.task.optimizer) is keras.optimizers.Adam
    assert type(scaled.task.optimizer) is LayerwiseAdam
    history, weights = train(plain, slices, tmp_path / "plain")
    other, found = train(scaled, slices, tmp_path / "scaled")
    assert_same(weights, found)
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in other]
    assert history[-1]["val_loss"] < history[0]["val_loss"]


def adam_by_hand(gradients, scale, rate=0.1):
    """Update one number with Adam (Kingma and Ba, ICLR 2015), with its rate times a scale per step."""
    value = mean = square = 0.0
    for step, (gradient, factor) in enumerate(zip(gradients, scale, strict=True), start=1):
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        value -= rate * factor * (mean / (1 - 0.9**step)) / (math.sqrt(square / (1 - 0.999**step)) + 1e-7)
    return value


def test_each_weight_moves_at_its_own_rate():
    weights = [keras.Variable([0.0]) for _ in range(3)]
    optimizer = LayerwiseAdam(0.1)
    optimizer.build(weights)
    gradients = np.random.default_rng(0).normal(size=(3, 5))
    scales = np.array([[1, 1, 1, 1, 1], [0.5, 0.5, 0.25, 0.25, 0.25], [0, 0, 1, 1, 1]])
    for step in range(5):
        optimizer.scales.assign(scales[:, step])
        optimizer.apply([keras.ops.convert_to_tensor([g], "float32") for g in gradients[:, step]])
    found = [float(keras.ops.convert_to_numpy(weight)[0]) for weight in weights]
    np.testing.assert_allclose(found, [adam_by_hand(*pair) for pair in zip(gradients, scales, strict=True)], rtol=1e-4)


def test_the_head_phase_trains_what_is_not_pretrained_and_nothing_else(slices, tmp_path, monkeypatch):
    states, iterations, report = [], [], checkpoints.Keeper._report
    remember = checkpoints.Keeper.remember
    monkeypatch.setattr(checkpoints.Keeper, "remember", lambda k: (remember(k), states.append(k.state))[0])
    read = lambda k: int(keras.ops.convert_to_numpy(k.task.optimizer.iterations))  # noqa: E731
    monkeypatch.setattr(checkpoints.Keeper, "_report", lambda k, *a: (iterations.append(read(k)), report(k, *a)))
    pretrained = weights_of(build_unet((16, 16, 1), filters=[4, 8], head=None, seed=9))
    encoder = {name: array for name, array in pretrained.items() if name.startswith("encoder_")}
    source = Pretrained(tmp_path / "weights.npz", encoder)
    shared, step = trainer(epochs=4, head_first=0.5, keep="last", schedule="cosine"), None
    for init, frozen in ((source, ("encoder_",)), (None, ("encoder_", "decoder_"))):
        states.clear()
        train(shared, slices, tmp_path / str(init is None), pretrained=init)
        assert step is None or shared.task.train_function is step  # one compiled step for phases and cells
        step = shared.task.train_function
        names = [weight.path for weight in shared.network.weights]
        # Moments follow the weights.
        start, _, head, _, end = [dict(zip(names, state, strict=False)) for state in states]
        for name in start:
            assert np.array_equal(start[name], head[name]) == name.startswith(frozen), name
            assert not np.array_equal(head[name], end[name]), name
    assert iterations == 2 * [4, 8, 4, 8]  # moments are reset after the head phase


def test_layers_far_from_the_output_move_less(slices, tmp_path):
    moved = {}
    for decay in (1.0, 0.5):
        cell = trainer(epochs=1, rate=1e-3, layer_decay=decay, keep="last", is_layerwise=True)
        cell.start_from(seed=0)
        before = {w.path: np.array(keras.ops.convert_to_numpy(w)) for w in cell.network.weights}
        _, after = train(cell, slices, tmp_path / str(decay))
        moved[decay] = {
            name.split("/")[0]: np.abs(after[name] - before[name]).mean() for name in after if "kernel" in name
        }
    for name, level in levels_from_output(moved[1.0]).items():
        assert moved[0.5][name] / moved[1.0][name] == pytest.approx(0.5**level, rel=0.4), name


SETTINGS = {
    "best": {"schedule": "cosine", "warm_up": 0.2, "head_first": 0.4, "head_learning_rate": 2e-2, "layer_decay": 0.7},
    "last": {"schedule": "poly", "keep": "last", "head_first": 0.4},
    "plateau": {"schedule": "plateau", "warm_up": 0.2, "plateau_epochs": 1, "head_first": 0.2, "rate": 0.2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_interrupted_schedule_ends_like_an_uninterrupted_one(name, slices, tmp_path, monkeypatch):
    cell = trainer(epochs=10, **SETTINGS[name])
    history, weights = train(cell, slices, tmp_path / "whole")
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    # During the head phase and the warm-up, at their ends, and while the rate decreases.
    for stop in (1, 4, 5, 8):
        report = checkpoints.Keeper._report
        with monkeypatch.context() as context:

            def interrupt(keeper, epoch, row, stop=stop, report=report):
                if epoch == stop + 1:
                    raise KeyboardInterrupt
                report(keeper, epoch, row)

            context.setattr(checkpoints.Keeper, "_report", interrupt)
            with pytest.raises(KeyboardInterrupt):
                train(cell, slices, tmp_path / CUT)
    resumed, found = train(cell, slices, tmp_path / CUT)
    assert_same(weights, found)
    assert [{**row, "seconds": 0} for row in resumed] == [{**row, "seconds": 0} for row in history]


def test_the_rates_of_the_history_are_those_of_the_schedule(slices, tmp_path):
    history, _ = train(trainer(epochs=10, rate=1e-3, **SETTINGS["best"]), slices, tmp_path)
    expected = rates_by_hand("cosine", 10, 1e-3, warm_up=0.2, head_first=0.4, head_rate=2e-2)
    np.testing.assert_allclose([row["learning_rate"] for row in history], expected, rtol=1e-6)


def test_a_plateau_is_not_counted_before_the_rate_is_full(slices, tmp_path):
    history, _ = train(trainer(epochs=12, **SETTINGS["plateau"]), slices, tmp_path)
    rates, best, waited, expected = [row["learning_rate"] for row in history], math.inf, 0, []
    rate = None
    for epoch, planned in enumerate(rates_by_hand("plateau", 12, 0.2, warm_up=0.2, head_first=0.2)):
        rate = planned if epoch <= 4 else rate  # two epochs for the head, two for warm-up
        expected.append(rate)
        loss = history[epoch]["val_loss"]
        best, waited = (loss, 0) if loss < best else (best, waited + 1 if epoch >= 4 else 0)
        if epoch >= 4 and waited >= 1:
            rate, waited = rate / 2, 0
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[-1] < 0.2


def test_the_last_weights_stay_where_the_last_are_asked_for(slices, tmp_path):
    rough = {"epochs": 5, "rate": 0.3}  # a rate at which the loss fluctuates
    kept = {}
    for keep in ("best", "last"):
        history, kept[keep] = train(trainer(keep=keep, **rough), slices, tmp_path / keep)
        last, _ = read_weights(tmp_path / keep / "weights_last.npz")
        is_last = all(np.array_equal(a, b) for a, b in zip(last.values(), kept[keep].values(), strict=True))
        losses = [row["val_loss"] for row in history]
        assert losses[-1] > min(losses) and is_last == (keep == "last")
        with np.load(tmp_path / keep / "checkpoint.npz") as stored:
            assert any(name.startswith("best_") for name in stored.files) == (keep == "best")
