import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from losses.global_contrastive import simclr_loss
from tests.training.small import constrained, run_in, segmentation_trainer, settings, setup_in
from training.effective import PatchCounts
from training.pretraining import Images, Views, pretrain_global
from training.tensorboard import picture_of

SIZE, SCHEDULE = (16, 24), settings(epochs=2, steps=2, rate=1e-3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((8, *SIZE, 1), "float32")


def events(folder):
    """Read the events of a run as `{(step, tag): value}`, with `(height, width)` for pictures."""
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
    options = {"counts": PatchCounts(5, 3), "schedule": SCHEDULE, "with_tensorboard": True}
    _, history = constrained((images, maps), tmp_path, **options)
    found = events(tmp_path)
    for row in history:
        for name in ("loss", "val_loss", "learning_rate"):
            assert found[row["epoch"], name] == pytest.approx(row[name], rel=1e-6)
        assert found[row["epoch"], "validation"] == (4 * SIZE[0], 2 * SIZE[1])


def test_an_encoder_alone_has_no_picture(images, tmp_path):
    shown, views = Images(images), Views(0.1, 0.1, crop_scale=(0.5, 1.0))
    setup = setup_in(tmp_path, SCHEDULE, with_tensorboard=True)
    pretrain_global(shown, shown, simclr_loss, views, 8, None, setup)
    assert {tag for _, tag in events(tmp_path)} >= {"loss", "val_loss"}
    assert "validation" not in {tag for _, tag in events(tmp_path)}


def test_pictures_of_a_segmentation_show_image_result_and_reference(images, tmp_path):
    labels = (images[..., 0] > 0.5).astype("uint8")
    trainer = segmentation_trainer(SCHEDULE, shape=(*SIZE, 1))
    trainer.use(images, labels)
    caught = []
    fit, trainer.fit = trainer.fit, lambda *batches: caught.append(batches) or fit(*batches)
    trainer.train(np.arange(8), np.arange(8), run_in(tmp_path, with_tensorboard=True))
    assert events(tmp_path)[2, "validation"] == (4 * SIZE[0], 3 * SIZE[1])
    validation = caught[0][1]
    picture = picture_of(trainer.task, validation)
    rows = validation.rows(0)[:4]
    np.testing.assert_array_equal(picture[:, -SIZE[1] :, 0], labels[rows].reshape(-1, SIZE[1]))
    shown, image = picture[:, : SIZE[1], 0], images[rows, ..., 0].reshape(-1, SIZE[1])
    np.testing.assert_allclose(shown, (image - image.min()) / np.ptp(image), atol=1e-6)
