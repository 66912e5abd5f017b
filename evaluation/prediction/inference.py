"""Label maps on the subject's own grid from predictions on slices."""

import numpy as np


def label_map(probabilities, grid):
    """Resample class probabilities on slices to the subject's own voxels and take the most probable class.

    Probabilities, not labels, are interpolated, so that edges stay smooth if pixels were resampled; voxels outside the
    slices become background.

    Args:
        probabilities: Probability of each class on all slices of the subject, `(S, H, W, K)` float32
            (`predict_slices`).
        grid: The subject's `data.geometry.SliceGrid`.

    Returns:
        Class index per voxel, `(X, Y, Z)` uint8.
    """
    return most_probable(class_volumes(probabilities, grid))


def class_volumes(probabilities, grid):
    """Yield the probability of each class on the subject's own grid, `(X, Y, Z)` float32.

    Voxels outside the slices are background with probability 1. Arguments as for `label_map`.
    """
    for number in range(probabilities.shape[-1]):
        yield grid.to_volume(probabilities[..., number], order=1, fill=0 if number else 1)


def most_probable(volumes):
    """Return the index of the volume with the largest value at each voxel, uint8; the first if several are equal.

    Args:
        volumes: Iterable of arrays of one shape; only two are in memory at a time.
    """
    best = highest = None
    for number, volume in enumerate(volumes):
        if highest is None:
            best, highest = np.zeros(volume.shape, np.uint8), volume
            continue
        is_better = volume > highest
        best[is_better] = number
        highest = np.where(is_better, volume, highest)
    return best


def predict_slices(model, slices, batch_size):
    """Run a model over any number of slices in batches of one fixed size.

    Args:
        model: Anything with Keras' `predict_on_batch`, `(batch_size, H, W, C)` to class probabilities
            `(batch_size, H, W, K)`.
        slices: `(S, H, W, C)` float32.
        batch_size: Slices per call. Every call has exactly this many, so that the network compiles once: the last batch
            is padded by repeating the last slice.

    Returns:
        `(S, H, W, K)` float32.
    """
    outputs = []
    for start in range(0, len(slices), batch_size):
        batch = np.asarray(slices[start : start + batch_size], np.float32)
        missing = batch_size - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        outputs.append(np.asarray(model.predict_on_batch(padded), np.float32)[: len(batch)])
    return np.concatenate(outputs)
