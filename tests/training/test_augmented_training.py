"""All image changes at once, during training."""

import keras
import numpy as np
import pytest

from tests.training.small import run_in, segmentation_trainer, settings
from training.augmentation import Changes, draw_changes
from training.tasks import Segmentation, Synthesis
from utils.config.augmentation import AugmentationSection

INTENSITIES = {"gamma": (0.7, 1.5), "bias_field": 0.3, "blur_px": (0.5, 1), "low_resolution": 2, "noise": 0.1}
ALWAYS = {f"{name}_probability": 1 for name in ("gamma", "bias_field", "blur", "low_resolution", "noise")}
OFF = {"translation": 0, "rotation_degrees": 0, "scale": 0, "elastic_px": 0, "brightness": 0, "contrast": 0}
EVERYTHING = AugmentationSection(mirror=["left_right", "anterior_posterior"], **INTENSITIES, **ALWAYS).changes()
ONLY_INTENSITIES = AugmentationSection(**OFF, **INTENSITIES, **ALWAYS).changes()


def trainer(augmentation, **training):
    return segmentation_trainer(settings(**training), Changes(**augmentation))


class Unchanged(keras.layers.Layer):
    """A network that returns the images it sees."""

    def call(self, images, training=None):
        return images


def seen(task, batch):
    outputs = task(Unchanged(), None).forward(batch, training=True)
    return [keras.ops.convert_to_numpy(output) for output in outputs]


def test_cells_with_all_changes_share_one_step_and_repeat_exactly(slices, tmp_path):
    images, maps = slices
    shared = trainer(EVERYTHING)
    shared.use(images, (maps == 3).astype("uint8"))
    runs, steps = [], []
    for name in "ab":
        shared.start_from(seed=0)
        history = shared.train(np.arange(16), np.arange(6), run_in(tmp_path / name, seed=0))
        runs.append(([row["val_loss"] for row in history], shared.network.get_weights()))
        steps.append(shared.task.train_function)
    assert steps[0] is steps[1]
    assert runs[0][0] == runs[1][0] and np.isfinite(runs[0][0]).all()
    for one, two in zip(runs[0][1], runs[1][1], strict=True):
        np.testing.assert_array_equal(one, two)


def test_changes_of_intensities_leave_labels_and_targets_as_they_are():
    generator = np.random.default_rng(0)
    image = generator.random((3, 16, 16, 2)).astype("float32")
    label = generator.integers(0, 4, (3, 16, 16)).astype("int32")
    target = generator.random((3, 16, 16, 1)).astype("float32")
    drawn = draw_changes(3, (16, 16), generator, Changes(**ONLY_INTENSITIES), channels=2)
    changed, same = seen(Segmentation, drawn | {"image": image, "label": label})
    np.testing.assert_array_equal(same, label)
    changed_input, same = seen(Synthesis, drawn | {"image": image, "target": target})
    np.testing.assert_array_equal(same, target)
    np.testing.assert_allclose(changed_input, changed, atol=1e-6)
    assert np.abs(changed - image).mean(axis=(1, 2, 3)).min() > 0.03


@pytest.mark.parametrize(
    ("augmentation", "keys"),
    [
        ({}, set()),
        (AugmentationSection(**OFF).changes(), set()),
        (AugmentationSection(**OFF | {"brightness": 0.1}).changes(), {"brightness", "contrast"}),
        (AugmentationSection().changes(), {"affine", "elastic", "brightness", "contrast"}),
        (ONLY_INTENSITIES, {"brightness", "contrast", "gamma", "bias", "blur", "coarseness", "noise"}),
        (
            AugmentationSection(**OFF, mirror=["left_right"]).changes(),
            {"affine", "elastic", "brightness", "contrast"},
        ),
    ],
    ids=["nothing", "off", "brightness", "default", "intensities", "mirror"],
)
def test_a_batch_brings_what_is_switched_on_and_nothing_else(augmentation, keys):
    batch = trainer(augmentation).add_changes({"rows": np.arange(4)}, np.random.default_rng(0))
    assert set(batch) == {"rows"} | keys
    assert all(len(values) == 4 for values in batch.values())


def test_skipping_an_identity_warp_leaves_the_batch_as_it_is():
    changes = AugmentationSection(**OFF | {"brightness": 0.1, "contrast": 0.2}).changes()
    batch = {"image": np.random.default_rng(1).random((4, 16, 16, 1)).astype("float32")}
    batch["label"] = np.random.default_rng(2).integers(0, 4, (4, 16, 16)).astype("int32")
    before = batch | draw_changes(4, (16, 16), np.random.default_rng(0), Changes(**changes))
    now = trainer(changes).add_changes(batch, np.random.default_rng(0))
    assert "affine" in before and "affine" not in now
    for one, two in zip(seen(Segmentation, before), seen(Segmentation, now), strict=True):
        np.testing.assert_array_equal(one, two)
