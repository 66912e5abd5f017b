import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from training.finetuning import SegmentationTrainer
from training.pretraining import pretrain_constrained, pretrain_global
from training.tensorboard import picture_of

FILTERS, SIZE = [4, 8], (16, 24)
TRAINING = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "plateau_epochs": 5, "steps_per_epoch": 2}
CHANGES = {"crop_scale": (0.5, 1.0), "brightness": 0.1, "contrast": 0.1}
RUN = {"tag": "test", "name": "test", "with_tensorboard": True}
SHARED = {"filters": FILTERS, "training": TRAINING, "seed": 1, "warm_start": lambda network: None}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((8, *SIZE, 1), "float32")


def events(folder):
    """Read the events of a run: `{(step, tag): value}`, a picture as `(height, width)`."""
    (path,) = (folder / "tensorboard").iterdir()
    content, found = path.read_bytes(), {}
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        for value in event.summary.value:
            shown = value.image.height, value.image.width
            found[event.step, value.tag] = shown if value.HasField("image") else value.simple_value
        content = content[16 + length :]
    return found


def test_scalars_and_pictures_of_representations(images, tmp_path):
    maps = np.random.default_rng(1).integers(0, 3, (8, *SIZE)).astype("uint8")
    options = {"patch_size": 4, "decoder_levels": None, "features": 8, "anchors_per_slice": 3}
    loss = {"temperature": 0.1, "nearest_patches": 5}
    _, history = pretrain_constrained(
        images, maps, images, maps, loss_settings=loss, folder=tmp_path, **options, **SHARED, **RUN
    )
    found = events(tmp_path)
    for row in history:
        for name in ("loss", "val_loss", "learning_rate"):
            assert found[row["epoch"], name] == pytest.approx(row[name], rel=1e-6)
        assert found[row["epoch"], "validation"] == (4 * SIZE[0], 2 * SIZE[1])


def test_an_encoder_alone_has_no_picture(images, tmp_path):
    pretrain_global(images, images, temperature=0.1, features=8, folder=tmp_path, **CHANGES, **SHARED, **RUN)
    assert {tag for _, tag in events(tmp_path)} >= {"loss", "val_loss"}
    assert "validation" not in {tag for _, tag in events(tmp_path)}


def test_pictures_of_a_segmentation_show_image_result_and_reference(images, tmp_path):
    labels = (images[..., 0] > 0.5).astype("uint8")
    trainer = SegmentationTrainer(
        (*SIZE, 1), filters=FILTERS, classes=2, loss_settings={}, augmentation={}, training=TRAINING, evaluate_every=1
    )
    trainer.use(images, labels)
    caught = []
    fit, trainer.fit = trainer.fit, lambda *batches, **run: caught.append(batches) or fit(*batches, **run)
    trainer.train(np.arange(8), np.arange(8), seed=1, folder=tmp_path, **RUN)
    assert events(tmp_path)[2, "validation"] == (4 * SIZE[0], 3 * SIZE[1])
    validation = caught[0][1]
    picture = picture_of(trainer.task, validation)
    rows = validation.rows(0)[:4]
    np.testing.assert_array_equal(picture[:, -SIZE[1] :, 0], labels[rows].reshape(-1, SIZE[1]))
    shown, image = picture[:, : SIZE[1], 0], images[rows, ..., 0].reshape(-1, SIZE[1])
    np.testing.assert_allclose(shown, (image - image.min()) / np.ptp(image), atol=1e-6)
