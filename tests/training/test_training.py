"""The training loops on slices small enough to learn from in seconds."""

import csv
import functools
import json

import numpy as np
import pytest
from keras import ops

from data.slices import StoredArray
from models.weights import read_weights
from tests.training.loop import (
    EPOCHS,
    RATE,
    by_steps_per_dispatch,
    check_dispatches,
    check_halved,
    check_resumed,
    described,
    stopped_and_resumed,
)
from tests.training.small import LOSS, RUN, constrained, settings
from training import pretraining
from training.batches import Batches, Rows
from training.pretraining import pretrain_constrained, pretrain_global, pretrain_local, pretrain_regression
from training.steps import Task
from utils.checks import InputError
from utils.runs import child_seed


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
    if method in ("regression", "masked"):
        del run["features"]
        form = {"corrupted_share": 0.1} if method == "regression" else {"corrupted_share": 0.6, "block_px": 2}
        return pretrain_regression(images, images[:half], noise=0.01, **form, **run)
    if method == "global":
        return pretrain_global(images, images[:half], crop_scale=(0.8, 1.0), **(VIEWS | run))
    if method in ("anatomical", "attracting"):
        changes["partition_positives"] = method == "attracting"
        places = {"places": PLACES, "validation_places": tuple(numbers[:half] for numbers in PLACES)}
        return pretrain("global", images, maps, folder, epochs, n_partitions=2, **places, **changes)
    if method == "local":
        regions = {"decoder_levels": 1, "region_size": 2, "regions": 4, "negatives": 3, "freeze_encoder": False}
        return pretrain_local(images, images[:half], **(regions | VIEWS | run))
    constraint = {"decoder_levels": None, "patch_size": 4, "anchors_per_slice": 5, "loss_settings": LOSS}
    return pretrain_constrained(images, maps, images[:half], maps[:half], **(constraint | run))


LEARNED = {
    "regression": 0.7,
    "masked": 0.9,
    "global": 0.9,
    "anatomical": 0.9,
    "local": 0.9,
    "constrained": 0.8,
}
HEALTH = {"val_alignment", "val_uniformity", "val_feature_spread"}


@pytest.fixture(scope="module")
def learned(slices, tmp_path_factory):
    """Function from a method to the folder, network and history of twelve epochs, which are trained once."""

    @functools.cache
    def train(method):
        folder = tmp_path_factory.mktemp(method)
        return folder, *pretrain(method, *slices, folder)

    return train


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_learns_from_slices_and_logs_its_health(method, learned):
    _, _, history = learned(method)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]
    assert HEALTH.isdisjoint(history[0]) if method in ("regression", "masked") else set(history[0]) >= HEALTH
    if method == "constrained":
        check_constrained(*learned(method))


def test_a_partial_decoder_learns_and_logs_its_health(slices, tmp_path):
    changes = {"filters": [4, 8, 8], "decoder_levels": 1, "patch_size": 2}
    check_constrained(tmp_path, *constrained(slices, tmp_path, training=settings(epochs=12), **changes))


def check_constrained(folder, _network, history):
    assert history[-1]["val_loss"] < 0.7 * history[0]["val_loss"]
    assert history[-1]["val_feature_spread"] > 0.3
    assert 0 <= history[-1]["val_share_without_positive"] < 0.5
    with open(folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and float(rows[3]["val_loss"]) == history[3]["val_loss"]


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_learns_from_volumes(method, tmp_path):
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 2, 3, 2)).repeat(4, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (16, 8, 12, 8, 1))).astype("float32")
    training = settings(epochs=12, rate=1e-3 if method in ("global", "anatomical") else 1e-2)
    filters = [4, 8, 8] if method == "local" else [4, 8]  # whose decoder is a partial one
    options = {"filters": filters, "training": training}
    network, history = pretrain(method, images, maps.astype("int32"), tmp_path, **options)
    assert network.input_shape == (None, 8, 12, 8, 1)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]


def test_slices_of_one_part_that_look_alike_learn_to_attract(tmp_path):
    generator = np.random.default_rng(0)
    parts = generator.random((2, 16, 16, 1))  # what the two parts of every subject have in common
    images = parts[PLACES[1] // 2] + generator.normal(0, 0.1, (16, 16, 16, 1))
    training = settings(epochs=8, rate=1e-3)
    _, history = pretrain("attracting", images.astype("float32"), None, tmp_path, training=training)
    assert history[-1]["val_loss"] < 0.9 * history[0]["val_loss"]


def test_a_frozen_encoder_stays_and_the_decoder_learns(slices, tmp_path):
    kept = {}

    def remember(network):
        kept.update({weight.path: np.array(weight) for weight in network.weights})

    network, _ = pretrain("local", *slices, tmp_path, epochs=1, freeze_encoder=True, warm_start=remember)
    for weight in network.weights:
        is_encoder = weight.path.startswith("encoder_")
        assert np.array_equal(weight, kept[weight.path]) == is_encoder, weight.path
    assert any(path.startswith("encoder_") for path in kept)


def test_patches_of_the_background_may_be_left_out(slices, tmp_path, monkeypatch):
    images, maps = slices
    losses, seen = [], []
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, training, **run: seen.append((task, pair)))
    changes = {"patch_size": 1, "loss_settings": LOSS | {"nearest_patches": 255}}
    for keep in (True, False):
        pretrain("constrained", images, maps, tmp_path, background_patches=keep, **changes)
        task, pair = seen[-1]
        task.hold(*({name: part.arrays[name].values for name in part.on_device} for part in pair))
        for is_training, part in zip((True, False), pair, strict=True):
            loss = task.cost(part.batch(0), task.forward(part.batch(0), is_training), is_training)
            losses.append(float(ops.mean(loss)))
        health = {name: float(metric.result()) for name, metric in task.health.items()}
        assert 0 < health["share_without_negative"] < 1 or health["mean_positives"] > 0
    assert losses[2] < losses[0] and losses[3] < losses[1]  # fewer negatives
    assert (maps == 0).any() and np.isfinite(losses).all()


def as_stored(array):
    return StoredArray(lambda rows: array[rows].astype(array.dtype), array.shape, array.dtype)


@pytest.mark.parametrize("method", ["regression", "masked", "anatomical", "constrained"])
def test_a_run_repeats_itself_to_the_bit_from_the_device_and_from_a_file(method, learned, slices, tmp_path):
    _, held, history = learned(method)
    streamed, other = pretrain(method, *map(as_stored, slices), tmp_path)
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in other]
    for one, two in zip(held.get_weights(), streamed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.fixture(scope="module")
def stopped(slices, tmp_path_factory):
    """A run without a break and one with two, and their folder."""
    folder = tmp_path_factory.mktemp("stopped")
    train = lambda place, training: pretrain("regression", *slices, place, training=training)  # noqa: E731
    return stopped_and_resumed(train, folder), folder


def test_an_interrupted_run_ends_like_an_uninterrupted_one(stopped):
    check_resumed(stopped[0])


def test_a_finished_run_is_not_trained_again_until_its_result_is_written(stopped, slices, monkeypatch):
    result, folder = stopped
    monkeypatch.setattr(Task, "fit", None)  # which would train
    training = settings(epochs=EPOCHS, rate=RATE)
    again = described("resumed", *pretrain("regression", *slices, folder / "cut", training=training))
    for name, values in again.items():
        np.testing.assert_array_equal(values, result[name], err_msg=name)


def test_the_learning_rate_is_halved_on_a_plateau_and_the_best_weights_return(stopped):
    result, folder = stopped
    losses = result["whole/val_loss"]
    check_halved(result["whole/learning_rate"], losses)
    last, _ = read_weights(folder / "whole" / "weights_last.npz")
    is_last_best = losses[-1] == min(losses)
    returned = [result[f"whole/weights/{number}"] for number in range(len(last))]
    assert all(np.array_equal(a, b) for a, b in zip(last.values(), returned, strict=True)) == is_last_best


@pytest.mark.parametrize("method", ["global", "constrained"])
def test_several_steps_in_a_dispatch_train_like_one_by_one(method, slices, tmp_path):
    train = lambda place, training: pretrain(method, *slices, place, training=training)  # noqa: E731
    check_dispatches(by_steps_per_dispatch(train, tmp_path))


def test_a_checkpoint_of_another_config_is_not_resumed(slices, tmp_path, monkeypatch):
    state = {"tag": "other", "best": 0.0, "best_epoch": 0, "waited": 0, "history": []}
    np.savez(tmp_path / "checkpoint.npz", state=json.dumps(state))
    begun = []
    monkeypatch.setattr(Task, "fit", lambda task, *data, **options: begun.append(options["initial_epoch"]))
    pretrain("regression", *slices, tmp_path)
    assert begun == [0]


def test_a_damaged_checkpoint_is_named(slices, tmp_path):
    (tmp_path / "checkpoint.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match="checkpoint.npz: damaged .* delete it"):
        constrained(slices, tmp_path, training=settings())


def test_a_loss_that_is_not_finite_stops_the_run(slices, tmp_path, monkeypatch):
    nothing = lambda restored, *others, **settings: ops.sum(restored, axis=(1, 2, 3)) * np.nan  # noqa: E731
    monkeypatch.setattr("training.tasks.masked_l1", nothing)
    with pytest.raises(InputError, match=r"test: the loss became nan in epoch 1 \(step 1 of 4\); lower learning_rate"):
        pretrain("regression", *slices, tmp_path)


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
