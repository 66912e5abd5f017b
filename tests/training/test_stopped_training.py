"""Causes that stop pretraining: damaged or foreign checkpoints, non-finite losses, too little memory."""

import json

import numpy as np
import pytest

from tests.training.small import SharedSteps, constrained, settings, setup_in
from tests.training.test_training import CORRUPTION, pretrain
from training.batches import Batches, Rows
from training.pretraining import Images, pretrain_regression
from training.steps import Task
from utils.checks import InputError
from utils.runs import child_seed


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
        constrained(slices, tmp_path, schedule=settings())


@pytest.fixture(scope="module")
def restore():
    """Run regression on 32 training and 32 validation images, for 3 epochs of 4 steps."""
    train = SharedSteps().of(pretrain_regression)

    def call(images, validation, folder, subjects=None):
        setup = setup_in(folder, settings(), subjects=subjects)
        return train(Images(images), Images(validation), CORRUPTION["regression"], setup)

    return call


def test_a_loss_that_is_not_finite_stops_the_run(slices, restore, tmp_path):
    images = np.concatenate([slices[0], slices[0]])
    with pytest.raises(InputError, match=r"test: the loss became nan in epoch 1 \(step 1 of 4\); lower learning_rate"):
        restore(np.full_like(images, np.nan), images, folder=tmp_path)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_the_subjects_of_a_batch_that_breaks_the_loss_are_named(part, slices, restore, tmp_path):
    images = np.concatenate([slices[0], slices[0]])
    broken = images.copy()
    broken[21] = np.inf
    subjects = [f"sub-{number:02d}" for number in range(32)]
    is_training = part == "training"
    # Four batches of four slices per epoch: the bad slice occurs in the first two epochs.
    shown = Batches(
        {"image": Rows(broken)}, 4, child_seed(1, part), steps=4 if is_training else None, shuffle=is_training
    )
    places = [(0, step) for step in range(shown.steps)] + [(1, step) for step in range(shown.steps)]
    for epoch, step in places:
        shown.epoch = epoch + 1  # Keras begins with a reset, which counts
        if 21 in shown.sources(step):
            break
    sets = (broken, images) if is_training else (images, broken)
    with pytest.raises(InputError) as error:
        restore(*sets, subjects=(subjects, subjects), folder=tmp_path)
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
    message = "test: this machine has too little memory for batches of 4 images of 16 x 16 with 1 channels; lower"
    with pytest.raises(InputError, match=message):
        pretrain("regression", *slices, tmp_path)


def test_other_errors_are_not_taken_for_too_little_memory(slices, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("something else")

    monkeypatch.setattr("training.tasks.Regression.forward", fail)
    with pytest.raises(RuntimeError, match="something else"):
        pretrain("regression", *slices, tmp_path)
