"""TensorBoard events of a training, on every backend: losses, and outputs for some validation slices."""

import math

import keras
import numpy as np

SHOWN = 4  # slices per picture
PICTURES = 10  # pictures per training, evenly spaced over its epochs
RED_GREEN_BLUE = 3


class TensorBoard(keras.callbacks.Callback):
    """Write scalars of every epoch, and a picture at regular intervals, for `tensorboard --logdir`.

    A picture has a row for each slice: the image, and beside it the output of the network (classes as grey values, with
    the reference on the right; representations as their first three principal components in red, green and blue).

    Args:
        folder: Run folder; events are written to `tensorboard/` inside it.
        validation: `Batches` of the validation set; pictures show its first batch; None: no pictures.
        epochs: Total number of epochs.
        start: Epochs already done if a run is resumed; later events are removed.
    """

    def __init__(self, folder, validation, epochs, start=0):
        super().__init__()
        from tensorboardX import SummaryWriter

        self.validation, self.every = validation, max(1, epochs // PICTURES)
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def on_epoch_end(self, epoch, logs=None):
        for name, value in logs.items():
            if name == "loss" or name.startswith("val_"):
                self.writer.add_scalar(name, float(value), epoch + 1)
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        self.writer.add_scalar("learning_rate", float(rate), epoch + 1)
        is_due = self.validation is not None and (epoch + 1) % self.every == 0
        if is_due and (picture := picture_of(self.model, self.validation)) is not None:
            self.writer.add_image("validation", picture, epoch + 1, dataformats="HWC")
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


def picture_of(task, validation):
    """Draw some validation images and the outputs of the network.

    Args:
        task: `training.steps.Task` on its device.
        validation: `Batches` of the validation set.

    Returns:
        `(height, width, 3)` float in [0, 1]; None if the output is not a map, as for an encoder alone.
    """
    batch = validation.batch(0)
    images = keras.ops.cast(task.read(batch, "image", training=False)[:SHOWN], "float32")
    outputs = keras.ops.convert_to_numpy(task.network(images, training=False)).astype(np.float32)
    images, is_volume = keras.ops.convert_to_numpy(images), len(images.shape) == 5
    if outputs.ndim == 2 or is_volume and outputs.ndim == 3:
        return None
    size = images.shape[1:3]
    if outputs.ndim == 3:  # patches of a projection head, row by row
        rows = round(math.sqrt(outputs.shape[1] * size[0] / size[1]))
        outputs = outputs.reshape(len(outputs), rows, -1, outputs.shape[2])
    columns = [_grey(images[..., 0])]
    if "label" in validation.arrays:
        classes = outputs.shape[-1] - 1
        label = keras.ops.convert_to_numpy(task.read(batch, "label", training=False)[:SHOWN])
        columns += [_grey(outputs.argmax(-1) / classes, False), _grey(label / classes, False)]
    else:
        columns.append(_components(outputs) if outputs.shape[-1] > RED_GREEN_BLUE else _grey(outputs[..., 0]))
    columns = [column[..., column.shape[3] // 2, :] if column.ndim == 5 else column for column in columns]
    return np.concatenate([_enlarged(column, size).reshape(-1, size[1], 3) for column in columns], axis=1)


def _grey(values, is_stretched=True):
    if is_stretched:
        low, high = values.min(), values.max()
        values = (values - low) / ((high - low) or 1)
    return np.repeat(np.clip(values, 0, 1)[..., None].astype(np.float32), RED_GREEN_BLUE, axis=-1)


def _components(features):
    """Return the first three principal components of features `(B, ..., F)`, each scaled to [0, 1]."""
    values = features.reshape(-1, features.shape[-1])
    values = values - values.mean(axis=0)
    _, directions = np.linalg.eigh(values.T @ values)
    values = values @ directions[:, : -RED_GREEN_BLUE - 1 : -1]
    low, high = np.percentile(values, (1, 99), axis=0)
    values = np.clip((values - low) / np.maximum(high - low, 1e-6), 0, 1)
    return values.reshape(*features.shape[:-1], RED_GREEN_BLUE)


def _enlarged(pictures, size):
    """Enlarge pictures `(B, h, w, 3)` to `size`, a multiple of their size, by repeating pixels."""
    return pictures.repeat(size[0] // pictures.shape[1], axis=1).repeat(size[1] // pictures.shape[2], axis=2)
