"""The training loops on slices small enough to learn from in seconds."""

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from keras import ops

import finetune_segmentation
from data.slices import StoredArray
from losses.segmentation import dice_loss, focal_tversky_loss
from models.weights import read_weights, save_weights
from training import batches, checkpoints, pretraining
from training.batches import Batches, Rows
from training.finetuning import CompileClock, SegmentationTrainer
from training.pretraining import pretrain_constrained, pretrain_global, pretrain_local, pretrain_regression
from utils.checks import InputError
from utils.config import load_config
from utils.runs import child_seed

ROOT = Path(__file__).resolve().parents[2]
FILTERS = [4, 8, 8]
RUN = {"warm_start": lambda network: None, "tag": "hash", "name": "test", "seed": 1, "filters": FILTERS, "features": 8}
LOSS = {"temperature": 0.1, "nearest_patches": 20, "comparison": "pairwise", "anchor_is_positive": True}


def settings(epochs=3, steps=4, rate=1e-2):
    return {
        "epochs": epochs,
        "steps_per_epoch": steps,
        "batch_size": 4,
        "learning_rate": rate,
        "plateau_epochs": 2,
        "mixed_precision": False,
    }


@pytest.fixture(scope="module")
def slices():
    """Images whose brightness follows the class of a coarse map, with noise; `(images, maps)`."""
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 4, 4)).repeat(4, axis=1).repeat(4, axis=2)
    images = maps[..., None] / 4 + generator.normal(0, 0.1, (16, 16, 16, 1))
    return images.astype("float32"), maps.astype("int32")


def constrained(slices, folder, *, training, decoder_levels=None, patch_size=4, **changes):
    images, maps = slices
    return pretrain_constrained(
        images,
        maps,
        images[:6],
        maps[:6],
        decoder_levels=decoder_levels,
        patch_size=patch_size,
        anchors_per_slice=5,
        loss_settings=LOSS,
        training=training,
        folder=folder,
        **(RUN | changes),
    )


@pytest.mark.parametrize(("decoder_levels", "patch_size"), [(None, 4), (1, 2)])
def test_constrained_pretraining_learns_and_logs_its_health(slices, tmp_path, decoder_levels, patch_size):
    training = settings(epochs=12)
    _, history = constrained(slices, tmp_path, training=training, decoder_levels=decoder_levels, patch_size=patch_size)
    assert history[-1]["val_loss"] < 0.7 * history[0]["val_loss"]
    assert history[-1]["val_feature_spread"] > 0.3
    assert 0 <= history[-1]["val_share_without_positive"] < 0.5
    with open(tmp_path / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and float(rows[3]["val_loss"]) == history[3]["val_loss"]


def test_images_shown_one_by_one_share_the_map_of_their_slice(slices, tmp_path, monkeypatch):
    images, maps = slices
    maps = maps.copy()
    maps[3] = 0  # nothing to compare: left out in every contrast
    parts = []
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, training, **run: parts.extend(pair))
    three = np.concatenate([images, images + 1, images + 2])
    settings_of = {"patch_size": 4, "decoder_levels": None, "anchors_per_slice": 5, "loss_settings": LOSS}
    pretrain_constrained(three, maps, three[16:], maps, **settings_of, training=settings(), folder=tmp_path, **RUN)
    for part, copies in zip(parts, (3, 2), strict=True):
        shown, classes = part.arrays["image"][np.arange(part.slices)], part.arrays["patch_classes"]
        assert len(shown) == len(classes) == copies * 15
        for image, found in zip(shown, classes, strict=True):
            [row] = [n for n in range(16) if np.ptp(image - images[n]) < 1e-3]
            np.testing.assert_array_equal(found, maps[row, ::4, ::4].ravel())


VIEWS = {"brightness": 0.05, "contrast": 0.05, "temperature": 0.1}
PLACES = (np.arange(16) // 4, np.arange(16) % 4)  # four subjects of four slices


def pretrain(method, images, maps, folder, epochs=12, **changes):
    """Run one method on images of either rank; the first half of the images is the validation set."""
    run = RUN | {"folder": folder, "training": settings(epochs=epochs)} | changes
    half = len(images) // 2
    if method == "regression":
        del run["features"]
        return pretrain_regression(images, images[:half], corrupted_share=0.1, noise=0.01, **run)
    if method == "global":
        return pretrain_global(images, images[:half], crop_scale=(0.8, 1.0), **(VIEWS | run))
    if method == "anatomical":
        places = {"places": PLACES, "validation_places": tuple(numbers[:half] for numbers in PLACES)}
        return pretrain("global", images, maps, folder, epochs, n_partitions=2, **places, **changes)
    if method == "local":
        regions = {"decoder_levels": 1, "region_size": 2, "regions": 4, "negatives": 3, "freeze_encoder": False}
        return pretrain_local(images, images[:half], **(regions | VIEWS | run))
    constraint = {"decoder_levels": None, "patch_size": 4, "anchors_per_slice": 5, "loss_settings": LOSS}
    return pretrain_constrained(images, maps, images[:half], maps[:half], **(constraint | run))


LEARNED = {"regression": 0.7, "global": 0.9, "anatomical": 0.9, "local": 0.9, "constrained": 0.8}
HEALTH = {"val_alignment", "val_uniformity", "val_feature_spread"}


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_learns_from_slices_and_logs_its_health(method, slices, tmp_path):
    _, history = pretrain(method, *slices, tmp_path)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]
    assert HEALTH.isdisjoint(history[0]) if method == "regression" else set(history[0]) >= HEALTH


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_learns_from_volumes(method, tmp_path):
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 2, 3, 2)).repeat(4, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (16, 8, 12, 8, 1))).astype("float32")
    training = settings(epochs=12, rate=1e-3 if method in ("global", "anatomical") else 1e-2)
    network, history = pretrain(method, images, maps.astype("int32"), tmp_path, training=training)
    assert network.input_shape == (None, 8, 12, 8, 1)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]


def test_a_frozen_encoder_stays_and_the_decoder_learns(slices, tmp_path):
    kept = {}

    def remember(network):
        kept.update({weight.path: np.array(weight) for weight in network.weights})

    network, _ = pretrain("local", *slices, tmp_path, epochs=3, freeze_encoder=True, warm_start=remember)
    for weight in network.weights:
        is_encoder = weight.path.startswith("encoder_")
        assert np.array_equal(weight, kept[weight.path]) == is_encoder, weight.path
    assert any(path.startswith("encoder_") for path in kept)


def test_patches_of_the_background_may_be_left_out(slices, tmp_path):
    images, maps = slices
    losses = []
    for keep in (True, False):
        changes = {"background_patches": keep, "patch_size": 1, "loss_settings": LOSS | {"nearest_patches": 255}}
        _, history = pretrain("constrained", images, maps, tmp_path / str(keep), epochs=1, **changes)
        losses.append(history[0]["val_loss"])
        assert 0 < history[0]["val_share_without_negative"] < 1 or history[0]["val_mean_positives"] > 0
    assert losses[1] < losses[0]  # fewer negatives


def test_a_run_repeats_itself_to_the_bit(slices, tmp_path):
    runs = [constrained(slices, tmp_path / name, training=settings())[0].get_weights() for name in "ab"]
    for one, two in zip(*runs, strict=True):
        np.testing.assert_array_equal(one, two)


def test_an_interrupted_run_ends_like_an_uninterrupted_one(slices, tmp_path, monkeypatch):
    whole, history = constrained(slices, tmp_path / "whole", training=settings(epochs=6))
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    report = checkpoints.Keeper._report

    def stop_after_three(keeper, epoch, row):
        if epoch == 4 and not (tmp_path / "again").exists():
            raise KeyboardInterrupt
        report(keeper, epoch, row)

    monkeypatch.setattr(checkpoints.Keeper, "_report", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        constrained(slices, tmp_path / "cut", training=settings(epochs=6))
    assert (tmp_path / "cut" / "checkpoint.npz").exists()
    (tmp_path / "again").touch()
    resumed, resumed_history = constrained(slices, tmp_path / "cut", training=settings(epochs=6))
    assert [row["val_loss"] for row in resumed_history] == [row["val_loss"] for row in history]
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    # Until the result is written, a finished run is not trained again either.
    _, again = constrained(slices, tmp_path / "cut", training=settings(epochs=6))
    assert again == resumed_history


def as_stored(array):
    return StoredArray(lambda rows: array[rows].astype(array.dtype), array.shape, array.dtype)


@pytest.mark.parametrize("method", ["regression", "anatomical", "constrained"])
def test_slices_on_the_device_train_like_slices_from_a_file(method, slices, tmp_path):
    images, maps = slices
    held, history = pretrain(method, images, maps, tmp_path / "held", epochs=2)
    streamed, other = pretrain(method, as_stored(images), as_stored(maps), tmp_path / "streamed", epochs=2)
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in other]
    for one, two in zip(held.get_weights(), streamed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("method", ["global", "constrained"])
def test_several_steps_in_a_dispatch_train_like_one_by_one(method, slices, tmp_path, monkeypatch):
    runs = []
    for number in (1, 3):
        monkeypatch.setattr(batches, "steps_per_dispatch", lambda steps, smaller, number=number: number)
        training = settings(epochs=2, steps=5, rate=1e-3)  # five steps: three and two; eight slices: twice four
        network, history = pretrain(method, *slices, tmp_path / str(number), training=training)
        runs.append((network.get_weights(), [[row["loss"], row["val_loss"]] for row in history]))
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-4)
    for one, two in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_a_checkpoint_of_another_config_is_not_resumed(slices, tmp_path):
    state = {"tag": "other", "best": 0.0, "best_epoch": 0, "waited": 0, "history": []}
    np.savez(tmp_path / "checkpoint.npz", state=json.dumps(state))
    _, history = constrained(slices, tmp_path, training=settings(epochs=1))
    assert len(history) == 1


def test_a_damaged_checkpoint_is_named(slices, tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match="checkpoint.npz: damaged .* delete it"):
        constrained(slices, tmp_path, training=settings())


def test_a_loss_that_is_not_finite_stops_the_run(slices, tmp_path, monkeypatch):
    nothing = lambda representations, *others, **settings: ops.sum(representations, axis=(1, 2)) * np.nan  # noqa: E731
    monkeypatch.setattr("training.tasks.constrained_contrastive_loss", nothing)
    with pytest.raises(InputError, match=r"test: the loss became nan in epoch 1 \(step 1 of 4\); lower learning_rate"):
        constrained(slices, tmp_path, training=settings())


@pytest.mark.parametrize("part", ["training", "validation"])
def test_the_subjects_of_a_batch_that_breaks_the_loss_are_named(part, slices, tmp_path):
    images = np.concatenate([slices[0], slices[0]])
    images[21] = np.inf
    subjects = [f"sub-{number:02d}" for number in range(32)]
    is_training = part == "training"
    # Four batches of four slices an epoch: the bad slice comes in one of the first two epochs.
    shown = Batches(
        {"image": Rows(images)}, 4, child_seed(1, part), steps=4 if is_training else None, shuffle=is_training
    )
    places = [(0, step) for step in range(shown.steps)] + [(1, step) for step in range(shown.steps)]
    for epoch, step in places:
        shown.epoch = epoch + 1  # Keras begins with a reset, which counts
        if 21 in shown.sources(step):
            break
    run = {key: value for key, value in RUN.items() if key != "features"}
    run |= {"corrupted_share": 0.1, "noise": 0.01, "training": settings(), "folder": tmp_path}
    sets = (images, images[:4]) if is_training else (images[:16], images)
    with pytest.raises(InputError) as error:
        pretrain_regression(*sets, subjects=(subjects, subjects), **run)
    names = ", ".join(sorted(subjects[row] for row in shown.sources(step)))
    text = f"loss became inf in epoch {epoch + 1} with slices of {names} (step {step + 1} of {shown.steps}); lower"
    assert text in str(error.value).replace("nan", "inf") and "sub-21" in names
    assert (tmp_path / "checkpoint.npz").exists() == (epoch > 0)


@pytest.mark.parametrize(
    "error", [MemoryError("no"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")]
)
def test_too_little_memory_names_batch_and_image_size_and_what_to_lower(error, slices, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("training.tasks.Regression.forward", fail)
    message = (
        "test: the memory of this machine does not suffice for batches of 4 images of 16 x 16 with 1 channels; lower"
    )
    with pytest.raises(InputError, match=message):
        pretrain("regression", *slices, tmp_path)


def test_other_errors_are_not_taken_for_too_little_memory(slices, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr("training.tasks.Regression.forward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        pretrain("regression", *slices, tmp_path)


def test_an_interruption_keeps_the_last_whole_epoch(slices, tmp_path, monkeypatch):
    whole, history = pretrain("regression", *slices, tmp_path / "whole", epochs=4)

    def interrupt_in_the_third_epoch(keeper, batch, logs=None):
        if len(keeper.history) == 2 and batch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(checkpoints.Keeper, "on_train_batch_end", interrupt_in_the_third_epoch)
        context.setattr(checkpoints, "SECONDS_BETWEEN_CHECKPOINTS", 1e9)
        with pytest.raises(KeyboardInterrupt):
            pretrain("regression", *slices, tmp_path / "cut", epochs=4)
    with np.load(tmp_path / "cut" / "checkpoint.npz") as kept:
        assert len(json.loads(str(kept["state"]))["history"]) == 2
    resumed, other = pretrain("regression", *slices, tmp_path / "cut", epochs=4)
    assert [row["val_loss"] for row in other] == [row["val_loss"] for row in history]
    for one, two in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_learning_rate_is_halved_on_a_plateau_and_the_best_weights_return(slices, tmp_path):
    # A rate at which the loss jumps about: most epochs bring no improvement.
    network, history = constrained(slices, tmp_path, training=settings(epochs=14, rate=0.3))
    rates = [row["learning_rate"] for row in history]
    losses = [row["val_loss"] for row in history]
    expected, rate, best, since = [], 0.3, float("inf"), 0
    for loss in losses:
        expected.append(rate)
        best, since = (loss, 0) if loss < best else (best, since + 1)
        if since == 2:
            rate, since = rate / 2, 0
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[-1] < 0.3
    last, _ = read_weights(tmp_path / "weights_last.npz")
    is_last_best = losses[-1] == min(losses)
    same = all(np.array_equal(a, b) for a, b in zip(last.values(), network.get_weights(), strict=True))
    assert same == is_last_best


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
