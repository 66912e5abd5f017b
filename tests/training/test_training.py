"""Training on slices small enough to learn from in seconds."""

import csv
import functools

import numpy as np
import pytest
from keras import ops

from data.store.slices import StoredArray
from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
from losses.local_contrastive import Regions, region_contrast
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
from tests.training.small import COUNTS, LOSS, PATCHES, SharedSteps, constrained, settings, setup_in
from training import pretraining
from training.effective import PatchCounts
from training.pretraining import Corruption, Decoder, Images, Patches, Views
from training.steps import Task


def test_images_shown_one_by_one_share_the_map_of_their_slice(slices, tmp_path, monkeypatch):
    images, maps = slices
    maps = maps.copy()
    maps[3] = 0  # nothing to compare: excluded in every contrast
    parts = []
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, setup: parts.extend(pair))
    three = np.concatenate([images, images + 1, images + 2])
    shown, setup = (Images(three, maps), Images(three[16:], maps)), setup_in(tmp_path, settings())
    pretraining.pretrain_constrained(*shown, LOSS, PATCHES, COUNTS, Patches(), setup)
    for part, copies in zip(parts, (3, 2), strict=True):
        shown, classes = part.arrays["image"][np.arange(part.slices)], part.arrays["patch_classes"]
        assert len(shown) == len(classes) == copies * 15
        for image, found in zip(shown, classes, strict=True):
            [row] = [n for n in range(16) if np.ptp(image - images[n]) < 1e-3]
            np.testing.assert_array_equal(found, maps[row, ::4, ::4].ravel())


VIEWS = Views(brightness=0.05, contrast=0.05, crop_scale=(0.8, 1.0))
PARTIAL = Decoder(1, 8)
PLACES = (np.arange(16) // 4, np.arange(16) % 4)  # four subjects of four slices
CORRUPTION = {"regression": Corruption(0.1, noise=0.01), "masked": Corruption(0.6, noise=0.01, block_px=2)}


def pretrain(method, images, maps, folder, schedule=None, decoder=PARTIAL, **setup):
    """Run one method on images of rank 2 or 3; the first half of the images is the validation set."""
    setup, halves = setup_in(folder, schedule or settings(epochs=12), **setup), (images, images[: len(images) // 2])
    shown = [Images(one) for one in halves]
    if method in CORRUPTION:
        return pretraining.pretrain_regression(*shown, CORRUPTION[method], setup)
    if method == "global":
        loss = functools.partial(simclr_loss, temperature=0.1)
        return pretraining.pretrain_global(*shown, loss, VIEWS, 8, None, setup)
    if method in ("anatomical", "attracting"):
        shown = [Images(one, places=tuple(numbers[: len(one)] for numbers in PLACES)) for one in halves]
        is_attracting = method == "attracting"
        loss = functools.partial(anatomical_contrastive_loss, temperature=0.1, same_part_attracts=is_attracting)
        return pretraining.pretrain_global(*shown, loss, VIEWS, 8, 2, setup)
    if method == "local":
        loss = functools.partial(region_contrast, temperature=0.1)
        return pretraining.pretrain_local(*shown, loss, VIEWS, decoder, Regions(2, 4, 3), setup)
    shown = [Images(one, maps[: len(one)]) for one in halves]
    return pretraining.pretrain_constrained(*shown, LOSS, PATCHES, COUNTS, Patches(), setup)


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
def pretrain_again():
    """Return `pretrain` with compiled steps shared between calls."""
    return SharedSteps().of(pretrain)


@pytest.fixture(scope="module")
def learned(slices, pretrain_again, tmp_path_factory):
    """Return a function from method to the folder, network and history of twelve epochs, trained only once."""

    @functools.cache
    def train(method):
        folder, start = tmp_path_factory.mktemp(method), Start()
        decoder = Decoder(1, 8, freeze_encoder=method == "local")
        network, history = pretrain_again(method, *slices, folder, decoder=decoder, warm_start=start)
        network.start = start.weights
        return folder, network, history

    return train


class Start:
    """A warm start that changes nothing and records the initial weights of training, by path."""

    def __call__(self, network):
        self.weights = {weight.path: np.array(weight) for weight in network.weights}


@pytest.mark.parametrize("method", LEARNED)
def test_every_method_learns_from_slices_and_logs_its_health(method, learned):
    _, _, history = learned(method)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]
    assert HEALTH.isdisjoint(history[0]) if method in ("regression", "masked") else set(history[0]) >= HEALTH
    if method == "constrained":
        check_constrained(*learned(method))


def test_a_partial_decoder_learns_and_logs_its_health(slices, tmp_path):
    changes = {"filters": [4, 8, 8], "decoder": Decoder(1, 8, patch_size=2)}
    check_constrained(tmp_path, *constrained(slices, tmp_path, schedule=settings(epochs=12), **changes))


def check_constrained(folder, _network, history):
    assert history[-1]["val_loss"] < 0.7 * history[0]["val_loss"]
    assert history[-1]["val_feature_spread"] > 0.3
    assert 0 <= history[-1]["val_share_without_positive"] < 0.5
    with open(folder / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and float(rows[3]["val_loss"]) == history[3]["val_loss"]


@pytest.mark.parametrize("method", ["masked", "anatomical"])  # the others are tested on crops of volumes
def test_volumes_are_learned_from_as_well(method, tmp_path):
    generator = np.random.default_rng(0)
    maps = generator.integers(0, 4, (16, 2, 3, 2)).repeat(4, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    images = (maps[..., None] / 4 + generator.normal(0, 0.1, (16, 8, 12, 8, 1))).astype("float32")
    schedule = settings(epochs=12, rate=1e-3 if method == "anatomical" else 1e-2)
    network, history = pretrain(method, images, maps.astype("int32"), tmp_path, schedule)
    assert network.input_shape == (None, 8, 12, 8, 1)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]


def test_slices_of_one_part_that_look_alike_learn_to_attract(tmp_path):
    generator = np.random.default_rng(0)
    parts = generator.random((2, 16, 16, 1))  # common to the two parts of every subject
    images = parts[PLACES[1] // 2] + generator.normal(0, 0.1, (16, 16, 16, 1))
    schedule = settings(epochs=16, rate=3e-3)
    _, history = pretrain("attracting", images.astype("float32"), None, tmp_path, schedule)
    # Initially all representations are parallel: every pair costs log(1 + 4), with four views of other parts.
    assert history[0]["val_loss"] == pytest.approx(np.log(5), rel=0.05)
    assert history[-1]["val_loss"] < 0.2 * history[0]["val_loss"]


def test_a_frozen_encoder_stays_and_the_decoder_learns(learned):
    _, network, _ = learned("local")
    for weight in network.weights:
        is_encoder = weight.path.startswith("encoder_")
        assert np.array_equal(weight, network.start[weight.path]) == is_encoder, weight.path
    assert any(path.startswith("encoder_") for path in network.start)


def test_patches_of_the_background_may_be_left_out(slices, tmp_path, monkeypatch):
    losses, seen = [], []
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, setup: seen.append((task, pair)))
    changes = {"decoder": Decoder(None, 8), "counts": PatchCounts(255, 5), "schedule": settings()}
    for keep in (True, False):
        constrained(slices, tmp_path, patches=Patches(background=keep), **changes)
        task, pair = seen[-1]
        task.hold(*({name: part.arrays[name].values for name in part.on_device} for part in pair))
        for is_training, part in zip((True, False), pair, strict=True):
            loss = task.cost(part.batch(0), task.forward(part.batch(0), is_training), is_training)
            losses.append(float(ops.mean(loss)))
        health = {name: float(metric.result()) for name, metric in task.health.items()}
        assert 0 < health["share_without_negative"] < 1 or health["mean_positives"] > 0
    assert losses[2] < losses[0] and losses[3] < losses[1]  # fewer negatives
    assert (slices[1] == 0).any() and np.isfinite(losses).all()


def as_stored(array):
    return StoredArray(lambda rows: array[rows].astype(array.dtype), array.shape, array.dtype)


def test_a_run_repeats_itself_to_the_bit_from_the_device_and_from_a_file(learned, slices, tmp_path):
    _, held, history = learned("constrained")
    streamed, other = pretrain("constrained", *map(as_stored, slices), tmp_path)
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in other]
    for one, two in zip(held.get_weights(), streamed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("method", [*LEARNED, "attracting"])
def test_batches_from_a_file_bring_what_the_device_would_read(method, slices, tmp_path, monkeypatch):
    """The other methods get equal batches and initial weights when reading from a file."""
    given, (images, maps) = [], slices
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, setup: given.append((task, pair)))
    pretrain(method, images, maps, tmp_path)
    pretrain(method, as_stored(images), as_stored(maps) if method == "constrained" else maps, tmp_path)
    (held, on_device), (streamed, from_file) = given
    for one, two in zip(held.network.get_weights(), streamed.network.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not from_file[0].on_device  # the validation half has been read
    for device, file in zip(on_device, from_file, strict=True):
        assert device.on_device and device.steps == file.steps
        for epoch, step in [(epoch, step) for epoch in (0, 1, 5) for step in range(device.steps)]:
            expected, found = (with_images(batches, epoch, step) for batches in (device, file))
            assert set(found) == set(expected) >= {"image"}
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def with_images(batches, epoch, step):
    """Return a batch with the images that the device would read by their rows."""
    batches.epoch = epoch
    batch = batches.batch(step)
    rows = batch.pop("rows", None)
    return batch | {name: batches.arrays[name].values[rows] for name in batches.on_device}


@pytest.fixture(scope="module")
def stopped(slices, pretrain_again, tmp_path_factory):
    """Return a run without interruption, one with two, and their folder."""
    folder = tmp_path_factory.mktemp("stopped")
    train = lambda place, schedule: pretrain_again("regression", *slices, place, schedule)  # noqa: E731
    return stopped_and_resumed(train, folder), folder


def test_an_interrupted_run_ends_like_an_uninterrupted_one(stopped):
    check_resumed(stopped[0])


def test_a_finished_run_is_not_trained_again_until_its_result_is_written(stopped, slices, monkeypatch):
    result, folder = stopped
    monkeypatch.setattr(Task, "fit", None)  # which would train
    schedule = settings(epochs=EPOCHS, rate=RATE)
    again = described("resumed", *pretrain("regression", *slices, folder / "cut", schedule))
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
    train = lambda place, schedule: pretrain(method, *slices, place, schedule)  # noqa: E731
    check_dispatches(by_steps_per_dispatch(train, tmp_path))
