"""Synthesis in training: one field for all contrasts, both ranks, the same with less memory, independent cells."""

import functools
import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

from data.geometry import SliceGrid
from data.store.crops import open_volumes
from data.store.store import SliceStore, SubjectSlices
from losses.synthesis import synthesis_loss
from models.unet import build_unet
from tests.stores import write_store
from tests.training.small import run_in, settings
from training.augmentation import Changes, draw_changes
from training.crops import Crops
from training.finetuning import SynthesisTrainer
from training.loop import Keeper
from training.tasks import Synthesis

SIZES = {2: (12, 8), 3: (12, 8, 8)}
SCHEDULE = settings(epochs=5, steps=16, plateau_epochs=9)
CHANGES = {"translation": 0.05, "rotation_degrees": 8, "scale": (0.9, 1.1), "elastic_px": 0.5, "elastic_grid": 4}


def identity(rank, channels):
    """A network that returns its input; it has one weight, because an optimiser needs one."""
    image = keras.Input((*SIZES[rank], channels))
    return keras.Model(image, keras.layers.Rescaling(1.0)(image))


def batch_of(rank, seed=0, **changes):
    """Return two smooth images, targets with their channels in reverse order, and the changes."""
    generator = np.random.default_rng(seed)
    image = generator.random((2, *SIZES[rank], 2)).astype("float32")
    drawn = draw_changes(2, SIZES[rank], generator, Changes(**changes)) if changes else {}
    return {"image": image, "target": image[..., ::-1]} | drawn


@pytest.mark.parametrize("rank", [2, 3])
def test_an_image_that_is_its_target_stays_so(rank):
    batch = batch_of(rank, **CHANGES | {"elastic_px": 2.0})
    image, target = Synthesis(identity(rank, 2), synthesis_loss)(batch, training=True)
    np.testing.assert_allclose(image, np.asarray(target)[..., ::-1], atol=1e-6)
    assert np.abs(target - batch["target"]).mean() > 0.1, "it has moved"


@pytest.mark.parametrize("rank", [2, 3])
def test_intensities_change_in_the_inputs_only(rank):
    batch = batch_of(rank, **CHANGES, brightness=0.2, contrast=0.3)
    image, target = Synthesis(identity(rank, 2), synthesis_loss)(batch, training=True)
    for number in range(2):
        for channel in range(2):
            moved = np.asarray(target)[number, ..., 1 - channel]
            shift, scale = batch["brightness"][number], batch["contrast"][number]
            expected = (moved - moved.mean()) * scale + moved.mean() + shift
            np.testing.assert_allclose(image[number, ..., channel], expected, atol=1e-5)
    plain = batch | {"brightness": np.zeros(2, "float32"), "contrast": np.ones(2, "float32")}
    np.testing.assert_array_equal(Synthesis(identity(rank, 2), synthesis_loss)(plain, training=True)[1], target)
    assert np.abs(batch["brightness"]).min() > 0.01


@pytest.mark.parametrize("rank", [2, 3])
def test_both_move_the_same_way_along_every_axis(rank):
    batch = batch_of(rank, **CHANGES | {"elastic_px": 0, "rotation_degrees": 0, "scale": (1, 1)})
    shift = (2, -1, 3)[:rank]  # the field of view moves by this many pixels
    batch["affine"][:, :, rank] = shift
    moved = Synthesis(identity(rank, 2), synthesis_loss)(batch, training=True)
    for found, before in zip(moved, (batch["image"], batch["target"]), strict=True):
        expected = np.zeros_like(before)
        for place in np.ndindex(SIZES[rank]):
            source = tuple(np.add(place, shift))
            if all(0 <= index < size for index, size in zip(source, SIZES[rank], strict=True)):
                expected[(slice(None), *place)] = before[(slice(None), *source)]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("rank", [2, 3])
def test_the_cost_is_that_of_the_configs_loss_and_validation_is_left_as_it_is(rank):
    batch = batch_of(rank)
    errors = batch["image"] - batch["target"]
    for name, expected in (("l1", np.abs(errors).mean()), ("mse", (errors**2).mean())):
        task = Synthesis(identity(rank, 2), functools.partial(synthesis_loss, name=name))
        outputs = task(batch, training=False)
        np.testing.assert_array_equal(outputs[0], batch["image"])
        np.testing.assert_array_equal(outputs[1], batch["target"])
        assert float(task.compute_loss(batch, y_pred=outputs, training=False)) == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """Return four subjects whose t1 is a mixture of t1gd and flair that a network can learn."""
    path, generator, subjects = tmp_path_factory.mktemp("h5") / "volumes.h5", np.random.default_rng(0), []
    for number in range(4):
        coarse = generator.random((3, 4, 3, 2))
        images = coarse.repeat(3, axis=0).repeat(4, axis=1).repeat(4, axis=2)[: 8 + number % 2]
        images = np.concatenate([images, 0.3 * images[..., :1] + 0.6 * (1 - images[..., 1:])], axis=-1)
        grid = SliceGrid((12, 16, len(images)), np.eye(4), None, (16, 12))
        maps = np.ones(images.shape[:3], int)
        subjects.append(SubjectSlices(f"sub-{number}", grid, np.arange(len(images)), images, {None: maps}))
    form = {"contrasts": ["t1gd", "flair", "t1"], "image_size": (16, 12), "attributes": {"clusters": 4}}
    write_store(path, subjects, **form)
    return open_volumes(SliceStore(path), [f"sub-{number}" for number in range(4)], ["t1gd", "flair", "t1"])


def trainer(rank, schedule=SCHEDULE, remat=False):
    network = {"rank": rank, "filters": [4, 8], "head": "synthesis", "outputs": 1}
    build = functools.partial(build_unet, (*SIZES[rank], 2), **network)
    return SynthesisTrainer(build, synthesis_loss, remat=remat, augmentation=Changes(**CHANGES), schedule=schedule)


def train(shared, volumes, folder, seed):
    """Train one cell; returns its history and final weights."""
    size = shared.network.input_shape[1:-1]
    crops = [Crops(part, size, ["flair", "t1gd"], ["t1"], per_volume=4) for part in (volumes[:3], volumes[3:])]
    shared.start_from(seed=seed)
    history = shared.train(*crops, run_in(folder, seed))
    return history, shared.network.get_weights()


@pytest.fixture(scope="module", params=[2, 3])
def shared(request, volumes, tmp_path_factory):
    """Return a trainer, and history and weights of its first cell."""
    built = trainer(request.param)
    return built, *train(built, volumes, tmp_path_factory.mktemp("cell"), seed=1)


def test_networks_of_both_ranks_learn_a_contrast(shared):
    built, history, _ = shared
    assert built.network.output_shape == (None, *built.network.input_shape[1:-1], 1)
    assert history[-1]["val_loss"] < 0.8 * history[0]["val_loss"] and history[-1]["loss"] < 0.8 * history[0]["loss"]


@pytest.mark.parametrize("shared", [3], indirect=True)
def test_with_less_memory_the_weights_are_the_same(shared, volumes, tmp_path):
    _, history, weights = shared
    sparing_history, sparing_weights = train(trainer(3, remat=True), volumes, tmp_path, seed=1)
    assert sparing_history[-1]["val_loss"] == pytest.approx(history[-1]["val_loss"], rel=1e-3)
    for one, two in zip(weights, sparing_weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_a_cell_taken_up_from_a_checkpoint_ends_like_one_that_went_through(shared, volumes, tmp_path, monkeypatch):
    built, first, _ = shared
    monkeypatch.setattr("training.loop.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    save = Keeper.save

    def save_and_keep(keeper):
        save(keeper)
        if len(keeper.history) == 3:
            (tmp_path / "resumed").mkdir()
            shutil.copy(keeper.checkpoint, tmp_path / "resumed")

    monkeypatch.setattr(Keeper, "save", save_and_keep)
    step = built.task.train_function
    history, weights = train(built, volumes, tmp_path / "through", seed=2)
    monkeypatch.setattr(Keeper, "save", save)
    resumed, resumed_weights = train(built, volumes, tmp_path / "resumed", seed=2)
    assert built.task.train_function is step, "all cells share one compiled step"
    assert history[0]["val_loss"] != first[0]["val_loss"]
    assert [row["val_loss"] for row in resumed] == [row["val_loss"] for row in history]
    assert [row["seconds"] for row in resumed[:3]] == [row["seconds"] for row in history[:3]]
    assert [row["seconds"] for row in resumed[3:]] != [row["seconds"] for row in history[3:]]
    for one, two in zip(weights, resumed_weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_head_phase_freezes_all_but_the_head_and_resumes(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    phases = {"epochs": 4, "schedule": "poly", "keep": "last", "head_first": 0.5, "layer_decay": 0.9}
    built, states, report = trainer(2, replace(SCHEDULE, **phases)), [], Keeper._report
    monkeypatch.setattr(Keeper, "_report", lambda k, *a: (states.append(k.task.network.get_weights()), report(k, *a)))
    history, weights = train(built, volumes, tmp_path / "through", seed=2)
    for before, after, end, weight in zip(states[0], states[1], states[3], built.network.weights, strict=True):
        assert np.array_equal(before, after) != weight.path.startswith("synthesis_"), weight.path
        assert not np.array_equal(after, end)

    def interrupt(keeper, epoch, row):
        if epoch in (2, 4) and not (tmp_path / str(epoch)).exists():
            (tmp_path / str(epoch)).touch()
            raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "_report", interrupt)
    for _ in range(2):  # during the head phase, and after it
        with pytest.raises(KeyboardInterrupt):
            train(built, volumes, tmp_path / "cut", seed=2)
    resumed, found = train(built, volumes, tmp_path / "cut", seed=2)
    assert [row["loss"] for row in resumed] == [row["loss"] for row in history]
    for one, two in zip(weights, found, strict=True):
        np.testing.assert_array_equal(one, two)
