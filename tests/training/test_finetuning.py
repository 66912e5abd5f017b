"""Cells of step 4 on slices small enough to learn from in seconds."""

import time
from pathlib import Path

import numpy as np
import pytest

import finetune_segmentation
from losses.segmentation import dice_loss, focal_tversky_loss
from models.weights import save_weights
from tests.training.small import FILTERS, constrained, settings
from training.finetuning import CompileClock, SegmentationTrainer
from utils.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def trainer(**training):
    return SegmentationTrainer(
        (16, 16, 1),
        filters=FILTERS,
        classes=2,
        loss_settings={},
        augmentation={"translation": 0.1, "rotation_degrees": 10, "scale": (0.9, 1.1), "elastic_px": 1.0},
        training=settings(**training),
        evaluate_every=1,
    )


def test_one_compiled_step_serves_many_cells(slices, tmp_path):
    images, maps = slices
    labels = (maps == 3).astype("uint8")
    data = (np.arange(16), np.arange(6))
    shared = trainer(epochs=6)
    shared.use(images, labels)
    runs = []
    for number, name in enumerate("abc"):
        shared.start_from(seed=min(number, 1))
        history = shared.train(*data, seed=min(number, 1), folder=tmp_path / name, tag="hash", name=name)
        runs.append((history, shared.network.get_weights()))
        if number == 0:
            step = shared.task.train_function
    assert shared.task.train_function is step
    # The third cell repeats the second one: nothing of a cell (moments, rate, epoch) reaches the next.
    assert [row["val_loss"] for row in runs[1][0]] == [row["val_loss"] for row in runs[2][0]]
    for one, two in zip(runs[1][1], runs[2][1], strict=True):
        np.testing.assert_array_equal(one, two)
    assert runs[0][0][-1]["val_loss"] < runs[0][0][0]["val_loss"] != runs[1][0][0]["val_loss"]


def test_the_first_cell_pays_for_compiling(slices, tmp_path):
    images, maps = slices
    data = (np.arange(16), np.arange(6))
    shared, measured = trainer(epochs=3), []
    for name in "ab":
        shared.use(images, (maps == 3).astype("uint8"))  # the slices of another fold, of the same shape
        shared.start_from(seed=0)
        started = time.monotonic()
        shared.train(*data, seed=0, folder=tmp_path / name, tag="hash", name=name)
        measured.append((shared.compile_s, time.monotonic() - started))
    (first, whole), (second, _) = measured
    assert 0.5 * whole < first < whole
    assert second < 0.1 * first


def test_the_clock_of_compiling_takes_what_first_batches_took_longer():
    clock = CompileClock(None, None)
    assert clock.compile_s() == 0
    clock.seconds |= {
        "training": [5.0, 0.1, 0.3, 0.2],
        "validation": [2.0, 0.5, 0.5],
        "end of validation": [1.0],  # once only
    }
    assert clock.compile_s() == pytest.approx((5.0 - 0.2) + (2.0 - 0.5) + 1.0)
    clock.seconds = {"training": [0.1, 0.2, 0.2]}
    assert clock.compile_s() == 0


@pytest.mark.parametrize("name", ["focal_tversky", "dice"])
def test_the_loss_of_the_config_reaches_the_task(name):
    changes = [f"finetuning.loss.name={name}", "finetuning.loss.class_weights={liver: 3}", "network.filters=[4, 8]"]
    config = load_config(ROOT / "configs" / "renal_demo.yaml", changes)
    built = finetune_segmentation.build_trainer(config, channels=1)
    assert built.task.overlap_loss is {"focal_tversky": focal_tversky_loss, "dice": dice_loss}[name]
    assert built.task.loss_settings["class_weights"] == [1.0, 1.0, 1.0, 3.0, 1.0]
    assert built.task.cross_entropy_weight == config.finetuning.loss.cross_entropy_weight


def test_pretrained_weights_reach_the_network_and_the_head_stays_random(slices, tmp_path):
    pretrained, _ = constrained(slices, tmp_path, training=settings(epochs=1))
    save_weights(pretrained, tmp_path / "weights.npz")
    target = trainer()
    target.start_from(seed=7)
    random = {w.path: np.array(w) for w in target.network.weights}
    report = target.start_from(seed=7, pretrained=tmp_path / "weights.npz")
    assert "segmentation_conv" in report.left and not report.adapted
    moved = {layer.name for layer in pretrained.layers if layer.weights and not layer.name.startswith("projection")}
    assert set(report.moved) == moved
    for layer in target.network.layers:
        for variable in layer.weights:
            if layer.name in moved:
                source = {v.name: v for v in pretrained.get_layer(layer.name).weights}[variable.name]
                np.testing.assert_array_equal(variable, source)
            else:
                np.testing.assert_array_equal(variable, random[variable.path])
