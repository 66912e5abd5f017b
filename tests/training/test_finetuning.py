"""Cells of step 4 on slices small enough to learn from in seconds."""

import time
from pathlib import Path

import keras
import numpy as np
import pytest

import finetune_segmentation
from losses.segmentation import balanced_cross_entropy, dice_loss, focal_tversky_loss, plain_cross_entropy
from models.unet import build_unet
from models.weights import Pretrained, save_weights, weights_of
from tests.cheaply import steps_uncompiled
from tests.training.small import FILTERS, run_in, segmentation_trainer, settings
from training.augmentation import Changes
from training.finetuning import CompileClock, last_decoder_levels
from utils.checks import InputError
from utils.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
DATA = (np.arange(16), np.arange(6))


def trainer(**training):
    changes = Changes(translation=0.1, rotation_degrees=10, scale=(0.9, 1.1), elastic_px=1.0)
    return segmentation_trainer(settings(**training), changes)


@pytest.fixture(scope="module")
def cells(slices, tmp_path_factory):
    """Train three cells, the third like the second: history, weights, step, seconds of compiling and in total."""
    images, maps = slices
    shared, folder, runs = trainer(epochs=6), tmp_path_factory.mktemp("cells"), []
    for name, seed in zip("abc", (0, 1, 1), strict=True):
        shared.use(images, (maps == 3).astype("uint8"))  # the slices of another fold, of the same shape
        shared.start_from(seed=seed)
        started = time.monotonic()
        history = shared.train(*DATA, run_in(folder / name, seed))
        spent = time.monotonic() - started
        runs.append((history, shared.network.get_weights(), shared.task.train_function, shared.compile_s, spent))
    return runs


def test_one_compiled_step_serves_many_cells(cells):
    first, second, third = cells
    assert first[2] is second[2] is third[2] is not None
    # The third cell repeats the second: no state of a cell (moments, rate, epoch) reaches the next.
    assert [row["val_loss"] for row in second[0]] == [row["val_loss"] for row in third[0]]
    for one, two in zip(second[1], third[1], strict=True):
        np.testing.assert_array_equal(one, two)
    assert first[0][-1]["val_loss"] < first[0][0]["val_loss"] != second[0][0]["val_loss"]


def test_the_first_cell_pays_for_compiling(cells):
    (*_, first, whole), (*_, second, _), _ = cells
    assert 0.5 * whole < first < whole
    assert second < 0.1 * first


def test_the_clock_of_compiling_takes_what_first_batches_took_longer():
    clock = CompileClock(None, None)
    assert clock.compile_s() == 0
    clock.seconds |= {
        "training": [5.0, 0.1, 0.3, 0.2],
        "validation": [2.0, 0.5, 0.5],
        "end of validation": [1.0],  # only once
    }
    assert clock.compile_s() == pytest.approx((5.0 - 0.2) + (2.0 - 0.5) + 1.0)
    clock.seconds = {"training": [0.1, 0.2, 0.2]}
    assert clock.compile_s() == 0


LOSSES = {
    ("focal_tversky", "balanced", 0.1): (focal_tversky_loss, balanced_cross_entropy),
    ("dice", "plain", 0.1): (dice_loss, plain_cross_entropy),
    ("cross_entropy", "balanced", 0): (balanced_cross_entropy, balanced_cross_entropy),
    ("cross_entropy", "plain", 0): (plain_cross_entropy, plain_cross_entropy),
}


@pytest.mark.parametrize("chosen", LOSSES, ids=str)
def test_the_loss_of_the_config_reaches_the_task(chosen):
    name, cross_entropy, weight = chosen
    changes = [f"finetuning.loss={{name: {name}, cross_entropy: {cross_entropy}, cross_entropy_weight: {weight}}}"]
    changes += ["finetuning.loss.class_weights={liver: 3}", "network.filters=[4, 8]"]
    config = load_config(ROOT / "configs" / "renal_demo.yaml", changes)
    built = finetune_segmentation.build_trainer(config, channels=1)
    main_loss, added = LOSSES[chosen]
    target, found = batch_of_outputs(classes=5)
    expected = float(main_loss(target, found, class_weights=[1.0, 1.0, 1.0, 3.0, 1.0]))
    expected += weight * float(added(target, found))
    assert float(built.task.cost({}, (found, target), training=True)) == pytest.approx(expected)


def batch_of_outputs(classes):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.ones(classes), (2, 8, 8)).astype("float32")
    return generator.integers(0, classes, (2, 8, 8)), probabilities


def test_pretrained_weights_reach_the_network_and_the_head_stays_random(tmp_path):
    pretrained = build_unet((16, 16, 1), filters=FILTERS, head="projection", features=8, patch_size=4, seed=5)
    save_weights(pretrained, tmp_path / "weights.npz")
    target = trainer()
    target.start_from(seed=7)
    random = {w.path: np.array(w) for w in target.network.weights}
    report = target.start_from(seed=7, pretrained=Pretrained.read(tmp_path / "weights.npz"))
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


def small_trainer(epochs=2, steps=4, **options):
    fixed = settings(epochs, steps, keep="last", schedule="poly")
    return segmentation_trainer(fixed, filters=[4, 8, 8], **options)


@pytest.fixture(scope="module")
def fixed():
    """Return a trainer with a fixed schedule, whose compiled step serves several tests."""
    return small_trainer()


def test_what_is_not_pretrained_is_the_same_for_random_weights_as_far_as_can_be():
    built = small_trainer(head_block=True, fresh_levels=1)
    report = built.start_from(seed=0)
    fresh = {"segmentation_conv", "segmentation_block_conv_1", "segmentation_block_norm_1"}
    fresh |= {f"decoder_2_{part}" for part in ("up", "up_norm", "conv_1", "norm_1", "conv_2", "norm_2")}
    weighted = {layer.name for layer in built.network.layers if layer.weights}
    assert report is None and set(built.fresh) & weighted == fresh
    pretrained = weights_of(build_unet((16, 16, 1), filters=[4, 8, 8], head=None, seed=5))
    report = built.start_from(seed=0, pretrained=Pretrained(Path("weights.npz"), pretrained))
    assert set(report.left) == set(built.fresh) == fresh
    built.start_from(seed=0)  # transferred weights of one cell do not reach the next
    assert set(built.fresh) & weighted == fresh


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_last_decoder_levels_are_those_beside_the_head(count):
    network = build_unet((16, 16, 1), filters=[4, 8, 8], outputs=2)
    assert last_decoder_levels(network, count) == {0: (), 1: ("decoder_2_",), 2: ("decoder_1_", "decoder_2_")}[count]


def test_with_less_memory_the_weights_are_the_same(slices, monkeypatch, tmp_path):
    images, maps = slices
    remat, levels, weights = keras.remat, [], []
    monkeypatch.setattr(keras, "remat", lambda function: levels.append(1) or remat(function))
    with steps_uncompiled():
        for asked in (False, True):
            built = small_trainer(epochs=1, steps=2, remat=asked, head_block=True)
            built.use(images, (maps == 3).astype("uint8"))
            built.start_from(seed=0)
            built.train(np.arange(16), np.arange(0), run_in(tmp_path / str(asked), seed=0))
            weights.append(built.network.get_weights())
            assert bool(levels) is asked
    start = small_trainer(head_block=True)._random_weights(0)
    for plain, sparing, before in zip(*weights, start, strict=True):
        np.testing.assert_allclose(sparing, plain, atol=1e-5)
        assert not np.array_equal(plain, before) or not before.size


@pytest.mark.parametrize("asked", [False, True])
def test_network_remat_reaches_the_task(asked):
    config = load_config(ROOT / "configs" / "renal_demo.yaml", ["network.filters=[4, 8]", f"network.remat={asked}"])
    built = finetune_segmentation.build_trainer(config, channels=1)
    assert (built.task._rematerialised is not None) is asked


def test_a_fixed_schedule_trains_without_validation_subjects_and_to_the_same_weights(slices, fixed, tmp_path):
    images, maps = slices
    built, weights = fixed, []
    built.use(images, (maps == 3).astype("uint8"))
    for validation in (np.arange(6), np.arange(0)):
        built.start_from(seed=0)
        folder = tmp_path / str(len(validation))
        history = built.train(np.arange(16), validation, run_in(folder, seed=0))
        weights.append(built.network.get_weights())
        assert all(("val_loss" in row) == (len(validation) > 0) for row in history)
    for one, two in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_loss_that_is_not_finite_is_named_without_validation_subjects_too(slices, fixed, tmp_path):
    images, maps = slices
    built = fixed
    built.use(np.full_like(images, np.inf), (maps == 3).astype("uint8"))
    with pytest.raises(InputError, match="the loss became nan in epoch 1 with slices of a"):
        run = run_in(tmp_path, seed=0, subjects=(["a"] * 16, ["a"] * 16))
        built.train(np.arange(16), np.arange(0), run)
