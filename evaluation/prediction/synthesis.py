"""Synthesised contrasts on the subject's own grid, from its slices."""

import numpy as np

from evaluation.prediction.sliding_window import predict_volume


def synthesise_subject(model, slices, grid, crop_size, *, overlap, batch_size):
    """Synthesise contrasts window by window and resample them to the subject's own voxels.

    The network sees windows of one size, whatever the size of the subject; slices and results are held completely in
    memory: at most about 6 bytes per pixel for each of the C contrasts and 12 bytes per voxel for each of the K.

    Args:
        model: Anything with Keras' `predict_on_batch`, `(batch_size, *crop_size, C)` to `(batch_size, *crop_size, K)`.
        slices: All slices of the subject, `(S, H, W, C)`, in [0, 1].
        grid: The subject's `data.geometry.SliceGrid`.
        crop_size: `(h, w, d)` that the network was trained on, or `(h, w)`.
        overlap: Smallest overlap of neighbouring windows, as a share of a window, in [0, 1).
        batch_size: Windows per call. Every call has exactly this many, so that the network compiles once.

    Returns:
        `(X, Y, Z, K)` float32 in [0, 1], as training targets are; 0 outside the slices.
    """
    if len(crop_size) == 2:
        model, crop_size = _SliceBySlice(model), (*crop_size, 1)
    volume = np.moveaxis(np.asarray(slices, np.float32), 0, 2)
    predicted = predict_volume(model, volume, tuple(crop_size), batch_size=batch_size, overlap=overlap)
    return np.clip(grid.to_volume(np.moveaxis(predicted, 2, 0)), 0, 1)


class _SliceBySlice:
    """A network of rank 2, used on windows that are one slice thick."""

    def __init__(self, model):
        self.model = model

    def predict_on_batch(self, windows):
        return np.asarray(self.model.predict_on_batch(windows[:, :, :, 0]))[:, :, :, None]
