"""Slices to volume: fixed batch shape, exact values, the subject's own grid."""

from dataclasses import dataclass

import numpy as np
import pytest

from evaluation.prediction.inference import label_map, predict_slices


class OneHotOfFirstContrast:
    """Stands in for a network: the first contrast holds the class index. Records every batch shape."""

    def __init__(self, classes):
        self.classes = classes
        self.shapes = []

    def predict_on_batch(self, batch):
        self.shapes.append(batch.shape)
        return np.eye(self.classes, dtype=np.float32)[batch[..., 0].astype(int)]


@dataclass(frozen=True)
class TransposedGrid:
    """The simplest grid that is not the identity: slices along the last axis, with a frame one voxel wide."""

    shape: tuple

    def to_volume(self, slices, order, fill=0):
        assert order == 1, "probabilities are carried back linearly"
        return np.pad(np.moveaxis(slices, 0, 2), [(1, 1), (1, 1), (0, 0)], constant_values=fill)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (4, 4), (7, 4), (5, 16)])
def test_every_batch_has_the_same_shape_and_padding_leaves_no_trace(count, batch_size):
    rng = np.random.default_rng(count)
    slices = rng.integers(0, 3, (count, 6, 5, 2)).astype(np.float32)
    model = OneHotOfFirstContrast(classes=3)
    probabilities = predict_slices(model, slices, batch_size)
    assert set(model.shapes) == {(batch_size, 6, 5, 2)}
    np.testing.assert_array_equal(probabilities.argmax(-1), slices[..., 0])


def test_the_label_map_lies_on_the_subjects_own_grid():
    classes = np.random.default_rng(0).integers(0, 4, (3, 6, 5))
    probabilities = predict_slices(OneHotOfFirstContrast(classes=4), classes[..., np.newaxis].astype(np.float32), 2)
    volume = label_map(probabilities, TransposedGrid((8, 7, 3)))
    assert volume.dtype == np.uint8
    np.testing.assert_array_equal(volume, np.pad(np.moveaxis(classes, 0, 2), [(1, 1), (1, 1), (0, 0)]))


def test_probabilities_are_interpolated_not_labels():
    """In a voxel averaged over three slices, two weak votes for class 1 lose to one strong vote for class 2."""

    class Averaging(TransposedGrid):
        def to_volume(self, slices, order, fill=0):
            return np.moveaxis(slices.mean(axis=0, keepdims=True), 0, 2)

    class Votes:
        def predict_on_batch(self, batch):
            votes = np.array([[0.2, 0.45, 0.35], [0.2, 0.45, 0.35], [0.0, 0.0, 1.0]], np.float32)
            return np.broadcast_to(votes[:, np.newaxis, np.newaxis], (3, 2, 2, 3))

    volume = label_map(predict_slices(Votes(), np.zeros((3, 2, 2, 1), np.float32), 3), Averaging((2, 2, 1)))
    np.testing.assert_array_equal(volume, 2)


def test_batches_of_a_real_network_equal_one_call():
    keras = pytest.importorskip("keras")
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, activation="softmax")(inputs))
    slices = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype(np.float32)
    expected = np.asarray(model(slices))
    np.testing.assert_allclose(predict_slices(model, slices, 2), expected, atol=1e-6)
