"""The numbers that lengths and shares of a constrained stage amount to: recorded, logged, checked and used."""

import json
import shutil

import numpy as np
import pytest

from tests.training.small import SharedSteps, constrained, settings
from training import pretraining
from training.effective import PatchCounts, effective_values, far_from_the_method
from training.loop import Keeper
from training.patches import patch_centres
from training.pretraining import Decoder, Patches
from training.steps import Task

HEAD = {"patch_representation": "concatenation", "head_normalization": True}
SHARES = {
    "decoder": Decoder(None, 8, patch_size=4, head=HEAD),
    "counts": PatchCounts(nearest_share=0.3, anchors_share=0.2),
    "patches": Patches(pixel_mm=2.0, positive_within_mm=12.0),
}


def test_values_are_those_of_the_median_image():
    counts = PatchCounts(nearest=100, anchors=20)
    assert effective_values(counts, [200, 500, 320, 10], 1280, 2, 5.0) == {
        "patch_px": 2,
        "patch_mm": 10.0,
        "patches": 1280,
        "median_foreground_patches": 260.0,
        "nearest_patches": 100,
        "nearest_share": 0.3846,
        "anchors": 20,
        "anchors_share": 0.0769,
    }
    shares = effective_values(PatchCounts(nearest_share=0.06, anchors_share=0.5), [200, 500, 320, 10], 1280, 2, None)
    assert (shares["nearest_patches"], shares["anchors"], shares["patch_mm"]) == (16, 130, None)


def test_there_are_no_more_patches_than_an_image_has():
    few = effective_values(PatchCounts(nearest=100, anchors=20), [4, 6, 8], 16, 4, None)
    assert (few["nearest_patches"], few["anchors"], few["nearest_share"]) == (15, 6, 2.5)
    none = effective_values(PatchCounts(nearest=100, anchors=20), [], 16, 4, 1.0)
    assert none["median_foreground_patches"] == 0 and none["nearest_share"] is None


@pytest.mark.parametrize(
    ("edge", "nearest", "words"),
    [(2, 25, []), (3, 25, ["12 mm, more than 10"]), (2, 26, ["26 nearest patches are 26% of the foreground"])],
)
def test_what_is_far_from_the_method_is_named(edge, nearest, words):
    complaints = [*far_from_the_method(effective_values(PatchCounts(nearest, 5), [100], 400, edge, 4.0))]
    assert len(complaints) == len(words)
    for complaint, word in zip(complaints, words, strict=True):
        assert word in complaint


def test_a_stage_records_logs_and_warns_once(slices, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(Task, "fit", lambda *data, **options: None)
    caplog.set_level("INFO", "mrccl")
    constrained(slices, tmp_path, schedule=settings(epochs=2), patches=Patches(pixel_mm=5.0))
    values = json.loads((tmp_path / "effective.json").read_text())
    maps = slices[1]
    corners = [(row, column) for row in range(0, 16, 4) for column in range(0, 16, 4)]
    foreground = [
        sum(np.bincount(one[row : row + 4, column : column + 4].ravel()).argmax() > 0 for row, column in corners)
        for one in maps
    ]
    assert maps.shape[1:] == (16, 16) and values["patches"] == 16
    assert values["median_foreground_patches"] == np.median([n for n in foreground if n > 1])
    assert (values["patch_px"], values["patch_mm"], values["nearest_patches"]) == (4, 20.0, 15)
    assert sum("patches of 4 px (20 mm)" in line for line in caplog.messages) == 1
    for words in ("an edge of 20 mm, more than 10", "15 nearest patches are"):
        assert sum(words in line for line in caplog.messages) == 1


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 12)])
def test_centres_of_patches_are_the_means_of_their_pixels(size):
    pixels = np.moveaxis(np.indices(size) + 0.5, 0, -1)
    expected = [
        pixels[tuple(slice(4 * i, 4 * i + 4) for i in corner)].reshape(-1, len(size)).mean(0)
        for corner in np.ndindex(*(length // 4 for length in size))
    ]
    np.testing.assert_allclose(patch_centres(size, 4), expected)


def test_shares_train_and_resume_to_the_bit(slices, tmp_path, monkeypatch):
    monkeypatch.setattr("training.loop.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    save = Keeper.save

    def save_and_keep(keeper):
        save(keeper)
        if len(keeper.history) == 3:
            (tmp_path / "resumed").mkdir()
            shutil.copy(keeper.checkpoint, tmp_path / "resumed")

    monkeypatch.setattr(Keeper, "save", save_and_keep)
    farther = SHARES | {"patches": Patches(pixel_mm=2.0, positive_within_mm=24.0)}  # more than the anchor itself
    pretrain = SharedSteps().of(constrained)
    network, history = pretrain(slices, tmp_path / "through", schedule=settings(epochs=6), **farther)
    monkeypatch.setattr(Keeper, "save", save)
    resumed, again = pretrain(slices, tmp_path / "resumed", schedule=settings(epochs=6), **farther)
    assert history[-1]["loss"] < history[0]["loss"]
    assert [row["val_loss"] for row in again] == [row["val_loss"] for row in history]
    for one, two in zip(network.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_each_image_is_compared_by_its_own_share(slices, tmp_path, monkeypatch):
    images, maps = slices
    maps = maps.copy()
    maps[::2, :8] = 0
    given = []
    monkeypatch.setattr(pretraining, "_train", lambda task, pair, setup: given.append((task, pair)))
    constrained((images, maps), tmp_path, schedule=settings(), **SHARES)
    [(task, pair)] = given
    assert task.selection.positive_within == 12 and task.network.output_shape == (None, 16, 8 * 16)
    np.testing.assert_array_equal(task.selection.positions[[0, 1, 15]], [[4, 4], [4, 12], [28, 28]])
    (batch,) = pair[1][0]
    foreground = (batch["patch_classes"] > 0).sum(1)
    assert len(set(foreground)) > 1 and task.selection.most_nearest == max(1, int(0.3 * 16 + 0.5))
    assert batch["nearest_patches"].tolist() == [max(1, int(0.3 * n + 0.5)) for n in foreground]
    assert (batch["anchors"] >= 0).sum(1).tolist() == [max(1, int(0.2 * n + 0.5)) for n in foreground]
