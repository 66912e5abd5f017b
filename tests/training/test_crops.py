"""Batches of crops: correct voxels, fixed by seed, epoch and step, also in the training loop."""

import keras
import numpy as np
import pytest
from keras import ops

from data.geometry import SliceGrid
from data.store.crops import open_volumes, region_of
from data.store.store import SliceStore, SubjectSlices
from losses.synthesis import synthesis_loss
from models.unet import build_unet
from tests.stores import write_store
from tests.training.small import run_in
from training.augmentation import Changes, draw_changes
from training.crops import Crops
from training.loop import fit
from training.schedules import Schedule
from training.steps import Task
from utils.checks import InputError

CONTRASTS = ["t1", "t1gd", "t2"]
SIZE = {"size": (8, 4, 4), "inputs": ["t2", "t1gd"], "targets": ["t1"]}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    path = tmp_path_factory.mktemp("h5") / "annotated.h5"
    generator = np.random.default_rng(0)
    subjects = []
    for number in range(5):
        images = generator.random((7 + number, 12, 10, 3)).astype("float32")
        images[..., 0] = images[..., 1:].mean(-1)  # t1 follows from the others
        maps = np.zeros(images.shape[:3], int)
        maps[:, 2:10, 2:8] = generator.integers(1, 5, (len(images), 8, 6))
        grid = SliceGrid((10, 12, len(images)), np.eye(4), None, (12, 10))
        subjects.append(SubjectSlices(f"sub-{number}", grid, np.arange(len(images)), images, {None: maps}))
    write_store(path, subjects, contrasts=CONTRASTS, image_size=(12, 10), attributes={"clusters": 4})
    return open_volumes(SliceStore(path), [subject.subject for subject in subjects], CONTRASTS)


def places_of(batch, volumes):
    """Find each crop in the volumes by brute force; returns `(volume, row, column, slice)`."""
    found = []
    for target in batch["target"][..., 0]:
        size = target.shape
        for number, volume in enumerate(volumes):
            whole = volume[0:12, 0:10, 0 : volume.shape[2]][..., 0]
            windows = np.lib.stride_tricks.sliding_window_view(whole, size)
            hits = np.argwhere((windows == target).all(axis=(3, 4, 5)))
            found += [(number, *map(int, hit)) for hit in hits]
    return found


def contents(batches, epochs=1):
    """Return all batches of the next epochs."""
    result = []
    for _ in range(epochs):
        result += [batches[step][0] for step in range(len(batches))]
        batches.on_epoch_end()
    return result


def assert_equal(one, other):
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_holds_inputs_and_targets_of_one_place_in_the_order_asked_for(volumes):
    (batch,) = Crops(volumes, **SIZE).batches(3, 1, with_maps=True)[0]
    assert {name: values.shape for name, values in batch.items()} == {
        "image": (3, 8, 4, 4, 2),
        "target": (3, 8, 4, 4, 1),
        "constraint_map": (3, 8, 4, 4),
    }
    places = places_of(batch, volumes)
    assert len(places) == 3
    for crop, (number, *corner) in enumerate(places):
        region = region_of(corner, SIZE["size"])
        np.testing.assert_array_equal(batch["image"][crop], volumes[number][region][..., [2, 1]])
        np.testing.assert_array_equal(batch["constraint_map"][crop], volumes[number].constraint_map(region))
    assert set(Crops(volumes, **SIZE).batches(3, 1)[0][0]) == {"image", "target"}
    assert set(Crops(volumes, (4, 4, 4), ["t1"]).batches(3, 1)[0][0]) == {"image"}


def test_crops_of_single_slices_for_networks_of_rank_two(volumes):
    (batch,) = Crops(volumes, **SIZE | {"size": (8, 6)}).batches(3, 1, with_maps=True)[0]
    assert [batch[name].shape for name in batch] == [(3, 8, 6, 2), (3, 8, 6, 1), (3, 8, 6)]
    assert len(places_of({"target": batch["target"][:, :, :, None]}, volumes)) == 3


def test_training_visits_every_volume_equally_often_at_new_places(volumes):
    batches = Crops(volumes, **SIZE).batches(4, 2, steps=5)
    places = [places_of(batch, volumes) for batch in contents(batches, epochs=4)]
    assert all(len(batch) == 4 for batch in places)
    flat = [place for batch in places for place in batch]
    assert np.bincount([place[0] for place in flat]).tolist() == [16] * 5
    assert len(set(flat)) > 50  # of 80
    shares = [(volumes[n].constraint_map(region_of(c, SIZE["size"])) > 0).mean() for n, *c in flat]
    assert min(shares) >= 0.25


def test_training_batches_depend_on_seed_epoch_and_step_only(volumes):
    def build(seed):
        finish = lambda batch, generator: batch | {"noise": generator.random(2)}  # noqa: E731
        return Crops(volumes, **SIZE).batches(2, seed, steps=3, finish=finish)

    walked, jumped, other = build(5), build(5), build(6)
    before = contents(walked, epochs=2)
    jumped.epoch = other.epoch = 2  # as a resumed run sets it
    for step in (2, 0, 1):
        assert_equal(walked[step][0], jumped[step][0])
        assert not np.array_equal(walked[step][0]["image"], other[step][0]["image"])
        assert all(not np.array_equal(walked[step][0]["noise"], batch["noise"]) for batch in before)
    held = Crops([volume.held() for volume in volumes], **SIZE).batches(2, 5, steps=3)
    np.testing.assert_array_equal(held[1][0]["image"], build(5)[1][0]["image"])


def test_places_change_with_seed_epoch_step_and_crop(volumes):
    def places(seed):  # one volume, so that only the position can differ
        batches = Crops(volumes[4:], **SIZE | {"size": (4, 4, 4)}).batches(2, seed, steps=3)
        return [place for batch in contents(batches, epochs=3) for place in places_of(batch, volumes[4:])]

    found = places(1)
    assert len(set(found)) >= 16  # of 18, among some hundred
    assert len(set(found) & set(places(2))) <= 4 and found == places(1)


def test_validation_is_one_fixed_pass_with_equally_many_crops_of_each_volume(volumes):
    crops = Crops(volumes, **SIZE, per_volume=3)
    batches = crops.batches(4, 7, shuffle=False)
    first = contents(batches)
    assert len(batches) == 4 and [len(batch["image"]) for batch in first] == [4, 4, 4, 3]
    for one, other in zip(first, contents(batches), strict=True):
        assert_equal(one, other)
    places = [place for batch in first for place in places_of(batch, volumes)]
    assert np.bincount([place[0] for place in places]).tolist() == [3] * 5
    assert len(set(places)) > 10
    assert len({place[0] for place in places[:4]}) > 1  # a batch mixes subjects
    for one, other in zip(first, contents(crops.batches(4, 7, shuffle=False)), strict=True):
        assert_equal(one, other)
    other = crops.batches(4, 8, shuffle=False)
    assert len(set(places) & {place for batch in contents(other) for place in places_of(batch, volumes)}) < 5


def test_all_mistakes_are_reported_at_once(volumes):
    with pytest.raises(InputError) as caught:
        Crops(volumes[3:], (8, 8, 11), ["t2", "t1", "t2"], ["t1", "flair"]).batches(2, 1)
    assert caught.value.lines[:3] == [
        "synthesis: 't2' is named twice; name each contrast once",
        "synthesis: 't1' is input and target; a contrast can be only one of them",
        "synthesis: there is no contrast 'flair'; known: t1, t1gd, t2",
    ]
    assert [line[:35] for line in caught.value.lines[3:]] == ["sub-3: a crop of (8, 8, 11) does no"]
    with pytest.raises(InputError, match="crops: there are no subjects to draw them from"):
        Crops([], **SIZE).batches(2, 1)


class Synthesis(Task):
    """A minimal synthesis task."""

    def forward(self, batch, training):
        return self.network(batch["image"], training=training)

    def cost(self, batch, prediction, training):
        return synthesis_loss(batch["target"], prediction)


@pytest.fixture(scope="module")
def train(volumes):
    """Return `(folder, epochs, stop_after=None) -> (history, weights)`, always with the same initial weights."""
    crops, changes = Crops(volumes, **SIZE | {"size": (4, 4, 4)}), Changes(translation=0.1)
    finish = lambda batch, generator: batch | draw_changes(2, (4, 4, 4), generator, changes)  # noqa: E731
    network = build_unet((4, 4, 4, 2), rank=3, filters=(2, 4), head="synthesis", outputs=1, seed=1)
    task, initial = Synthesis(network).ready(1e-2), network.get_weights()

    def run(folder, epochs, stop_after=None):
        def interrupt(epoch, logs):
            if epoch + 1 == stop_after:
                raise KeyboardInterrupt

        network.set_weights(initial)
        history = fit(
            task,
            crops.batches(2, 3, steps=3, finish=finish),
            crops.batches(2, 4, shuffle=False),
            Schedule(epochs, learning_rate=1e-2, batch_size=2, plateau_epochs=9),
            run_in(folder),
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=interrupt)],
        )
        return history, ops.convert_to_numpy(network.weights[0])

    return run


def test_training_learns_and_an_interrupted_run_ends_like_an_uninterrupted_one(train, tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    history, weights = train(tmp_path / "through", epochs=4)
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    (tmp_path / "stopped").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", epochs=4, stop_after=2)
    resumed, resumed_weights = train(tmp_path / "stopped", epochs=4)
    for one, other in zip(history, resumed, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["val_loss"] == pytest.approx(other["val_loss"], rel=1e-5)
    np.testing.assert_allclose(weights, resumed_weights, rtol=1e-4, atol=1e-6)
