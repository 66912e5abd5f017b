"""Pretraining on crops of volumes: the batches that arrays would give, resuming, and learning."""

import functools
import shutil

import numpy as np
import pytest

from data.geometry import SliceGrid
from data.store.crops import open_volumes
from data.store.store import SliceStore, SubjectSlices
from losses.global_contrastive import simclr_loss
from losses.local_contrastive import Regions, region_contrast
from tests.stores import write_store
from tests.training.small import COUNTS, LOSS, PATCHES, SharedSteps, settings, setup_in
from training import pretraining
from training.crops import Crops
from training.loop import Keeper
from training.pretraining import Corruption, Decoder, Images, Patches, Views

SIZE = (8, 8, 8)
VIEWS, CROPPED = Views(0.05, 0.05), Views(0.05, 0.05, crop_scale=(0.8, 1.0))
METHODS = {  # the settings of each, in the order of its parameters
    "regression": {"corruption": Corruption(0.1, noise=0.01)},
    "global": {"loss": simclr_loss, "views": CROPPED, "features": 8, "n_partitions": None},
    "local": {"loss": functools.partial(region_contrast, temperature=0.1), "views": VIEWS}
    | {"decoder": Decoder(1, 8), "regions": Regions(2, 4, 3)},
    "constrained": {"loss": LOSS, "decoder": PATCHES, "counts": COUNTS, "patches": Patches()},
}


def write_volumes(folder, sizes):
    """Open noisy volumes whose brightness follows the class of a coarse map; maps of two spaces."""
    generator, subjects = np.random.default_rng(0), []
    for number, depth in enumerate(sizes):
        maps = generator.integers(1, 5, (4, 4, 4)).repeat(4, axis=0).repeat(4, axis=1).repeat(4, axis=2)[:depth]
        images = np.stack([maps / 5, 1 - maps / 5], axis=-1) + generator.normal(0, 0.02, (*maps.shape, 2))
        grid = SliceGrid((16, 16, depth), np.eye(4), None, (16, 16))
        spaces = {None: maps, "late": 5 - maps}
        subjects.append(SubjectSlices(f"sub-{number}", grid, np.arange(depth), images, spaces))
    form = {"contrasts": ["t1", "t2"], "image_size": (16, 16), "attributes": {"clusters": 4}, "spaces": ["late"]}
    write_store(folder / "pretrain_train.h5", subjects, **form)
    return open_volumes(SliceStore(folder / "pretrain_train.h5"), [one.subject for one in subjects], ["t1", "t2"])


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return write_volumes(tmp_path_factory.mktemp("h5"), [16, 12, 16, 10])


def pretrain(method, parts, folder, maps=(None, None), filters=(4, 8), **changes):
    """Run one method on a training and a validation set, `Crops` or arrays; returns network and history."""
    rate = 1e-3 if method in ("global", "local") else 1e-2
    setup = setup_in(folder, settings(epochs=6, steps=8, rate=rate, plateau_epochs=9), filters)
    shown = map(Images, parts, maps)
    return getattr(pretraining, f"pretrain_{method}")(*shown, *(METHODS[method] | changes).values(), setup)


@pytest.fixture
def batches_of(monkeypatch, tmp_path):
    """Return a function like `pretrain` that returns the batches of both sets instead of training on them."""
    given = []
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, setup: given.append(pair))

    def prepare(*arguments, **changes):
        pretrain(*arguments, tmp_path, **changes)
        return given.pop()

    return prepare


@pytest.mark.parametrize("method", METHODS)
def test_crops_as_large_as_their_volumes_give_the_batches_of_an_array(method, tmp_path, batches_of):
    volumes = write_volumes(tmp_path, [16] * 6)
    whole = np.stack([volume[0:16, 0:16, 0:16] for volume in volumes])
    maps = np.stack([volume.constraint_map((slice(16),) * 3) for volume in volumes])
    arrays = batches_of(method, (whole[:4], whole[4:]), maps=(maps[:4], maps[4:]))
    shown = [Crops(part, (16, 16, 16), ["t1", "t2"]) for part in (volumes[:4], volumes[4:])]
    crops = batches_of(method, shown)
    for one, other, steps in zip(arrays, crops, (8, 1), strict=True):
        assert len(one) == len(other) == steps
        for epoch, step in ((0, 0), (0, steps - 1), (3, 0)):
            one.epoch = other.epoch = epoch
            (expected,), (found,) = one[step], other[step]
            expected["image"] = one.arrays["image"].values[expected.pop("rows")]  # to be read on the device
            assert set(found) == set(expected)
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def majority_by_hand(maps, patch):
    """Return the most frequent class of each patch, row by row; of equally frequent ones the lowest."""
    classes = []
    for corner in np.ndindex(*(size // patch for size in maps.shape)):
        voxels = maps[tuple(slice(patch * start, patch * (start + 1)) for start in corner)]
        classes.append(np.argmax(np.bincount(voxels.ravel())))
    return classes


@pytest.mark.parametrize("space", [None, "late"])
@pytest.mark.parametrize(("levels", "patch", "voxels"), [(None, 4, 4), (None, 2, 2), (1, 2, 4)])
def test_patch_classes_are_those_of_the_crops_that_are_shown(volumes, batches_of, space, levels, patch, voxels):
    shown = [Crops(part, SIZE, ["t2"], space=space, per_volume=3) for part in (volumes[:3], volumes[3:])]
    decoder, filters = Decoder(levels, 8, patch), [4, 8, 8] if levels else [4, 8]
    for batches in batches_of("constrained", shown, decoder=decoder, filters=filters):
        (batch,) = batches[0]
        assert set(batch) == {"image", "patch_classes", "anchors"}
        for image, classes, anchors in zip(batch["image"], batch["patch_classes"], batch["anchors"], strict=True):
            # The map follows from the image: t2 is 1 - class / 5, with noise.
            maps = np.rint(5 * (1 - image[..., 0])).astype(int)
            maps = 5 - maps if space else maps
            assert classes.tolist() == majority_by_hand(maps, voxels)
            assert (classes[anchors] > 0).all() and len(set(anchors)) == 5


def test_background_patches_of_crops_may_be_left_out(tmp_path, batches_of):
    volumes = write_volumes(tmp_path, [16, 16])
    for volume in volumes:
        maps = volume.store.constraint_maps()
        maps[:, :8] = 0
        volume._held.update({"images": volume.store.images(rows=volume.rows), None: maps[volume.rows]})
    shown = [Crops([volume], (16, 16, 16), ["t1"]) for volume in volumes]
    for keep, background in ((True, 0), (False, -1)):
        (batch,) = batches_of("constrained", shown, patches=Patches(background=keep))[0][0]
        classes = batch["patch_classes"].reshape(-1, 4, 4, 4)
        assert (classes[:, :2] == background).all() and (classes[:, 2:] > 0).all()


RESUMED = ("regression", "constrained")  # the others differ in what they draw, compared in the tests above
LEARNED = {"regression": 0.8, "global": 0.85, "local": 0.6, "constrained": 0.9}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_from_crops_and_resumes_to_the_bit(method, volumes, tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    save = Keeper.save

    def save_and_keep(keeper):
        save(keeper)
        if len(keeper.history) == 3:
            (tmp_path / "resumed").mkdir()
            shutil.copy(keeper.checkpoint, tmp_path / "resumed")

    shown = [Crops([volume.held() for volume in part], SIZE, ["t1"], per_volume=4) for part in (volumes, volumes[3:])]
    monkeypatch.setattr(Keeper, "save", save_and_keep)
    pretrain_again = SharedSteps().of(pretrain)
    network, history = pretrain_again(method, shown, tmp_path / "through")
    monkeypatch.setattr(Keeper, "save", save)
    assert network.input_shape == (None, *SIZE, 1)
    assert history[-1]["val_loss"] < LEARNED[method] * history[0]["val_loss"]
    if method not in RESUMED:
        return
    resumed, resumed_history = pretrain_again(method, shown, tmp_path / "resumed")
    assert [row["seconds"] for row in resumed_history[:3]] == [row["seconds"] for row in history[:3]]
    assert [row["val_loss"] for row in resumed_history] == [row["val_loss"] for row in history]
    for one, two in zip(network.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
