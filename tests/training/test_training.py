"""The training loops on slices small enough to learn from in seconds."""

import csv
import json

import numpy as np
import pytest
from keras import ops

from data.slices import StoredArray
from models.weights import read_weights
from tests.training.small import LOSS, RUN, constrained, settings
from training import batches, checkpoints, pretraining
from training.batches import Batches, Rows
from training.pretraining import pretrain_constrained, pretrain_global, pretrain_local, pretrain_regression
from utils.checks import InputError
from utils.runs import child_seed


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
