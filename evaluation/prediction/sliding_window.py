"""Predictions for volumes of any size by overlapping, blended windows."""

import itertools

import numpy as np

from utils.checks import InputError

GAUSSIAN_SIGMA = 1 / 8  # of the window, as in nnU-Net
BLENDS = ("gaussian", "linear")


def predict_volume(model, volume, window, *, batch_size, overlap=0.5, blend="gaussian", out=None):
    """Predict a volume, or an image, window by window.

    Windows are equidistant, and the first and last are flush with the border. Overlapping predictions are averaged with
    weights that decrease from the centre of a window; the weights of a voxel sum to 1. A volume smaller than the window
    along an axis is padded with zeros on both sides.

    Windows without any signal, zero everywhere, are not predicted and count as zero: they do not occur in training, and
    the output of a normalising network would be arbitrary.

    Apart from the result, only one batch and the rows that a window spans are in memory: parts of the volume are read,
    and rows of the result written, as needed.

    Args:
        model: Anything with Keras' `predict_on_batch`, `(batch_size, *window, C)` to `(batch_size, *window, K)`.
        volume: `(H, W, D, C)`, or `(H, W, C)` for two sizes in `window`: an array, or anything that has a `shape` and
            can be sliced like `data.store.crops.SubjectVolume`.
        window: Input size of the model, voxels.
        batch_size: Windows per call. Every call has exactly this many, so that the network compiles once.
        overlap: Smallest overlap of neighbouring windows, as a share of a window, in [0, 1).
        blend: `"gaussian"` (sigma 1/8 of the window) or `"linear"` weights.
        out: Array `(H, W[, D], K)` to write into, such as a memory map; None: a new one.

    Returns:
        `(H, W[, D], K)` float32, or `out`.

    Raises:
        InputError: For an invalid overlap, blend, batch size or shape.
    """
    sizes, window = tuple(volume.shape[:-1]), tuple(window)
    _check(volume, window, batch_size, overlap, blend)
    axes = [_Axis(*pair, overlap, blend) for pair in zip(sizes, window, strict=True)]
    sums = None
    for batch in _batched(_pieces(volume, axes), batch_size):
        pieces = np.stack([piece for _, piece in batch])
        missing = batch_size - len(batch)
        padded = np.concatenate([pieces, np.repeat(pieces[-1:], missing, axis=0)]) if missing else pieces
        predictions = np.asarray(model.predict_on_batch(padded))
        if predictions.shape[:-1] != (batch_size, *window):
            raise InputError(f"the model gives {predictions.shape} for windows of {window}; it must keep their size")
        if sums is None:
            out = _result(out, (*sizes, predictions.shape[-1]))
            sums = _Rows(out)
        for (places, piece), prediction in zip(batch, predictions, strict=False):
            sums.write_until(axes[0].inside(places[0]).start)  # no later window reaches these rows
            _add(sums, axes, places, prediction * piece.any())
    sums.write_until(sizes[0])
    return out


class _Axis:
    """Positions of the windows along one axis, and the weights of their voxels.

    Attributes:
        starts: First voxel of each window, `(n,)`; negative where the volume is padded.
        weights: `(n, window)` float64; the weights of one voxel sum to 1 over the windows.
    """

    def __init__(self, size, window, overlap, blend):
        self.size, self.window = size, window
        step = max(1, int(window * (1 - overlap)))
        count = max(0, -(-(size - window) // step)) + 1
        last = max(0, size - window)
        self.starts = np.rint(np.linspace(0, last, count)).astype(int) - max(0, window - size) // 2
        from_middle = np.arange(window) - (window - 1) / 2
        if blend == "gaussian":
            profile = np.exp(-0.5 * (from_middle / (GAUSSIAN_SIGMA * window)) ** 2)
        else:
            profile = (window + 1) / 2 - np.abs(from_middle)
        places = self.starts[:, None] - self.starts[0] + np.arange(window)
        totals = np.bincount(places.ravel(), np.tile(profile, count))
        self.weights = profile / totals[places]

    def inside(self, place):
        """Return the range of voxels of the volume that a window covers."""
        return slice(max(0, self.starts[place]), min(self.size, self.starts[place] + self.window))

    def within(self, place):
        """Return the same range, counted from the start of the window."""
        inside = self.inside(place)
        return slice(inside.start - self.starts[place], inside.stop - self.starts[place])


class _Rows:
    """Float64 sums of the rows that are not yet complete; complete rows are written to the result once."""

    def __init__(self, out):
        self.out, self.first, self.sums = out, 0, np.zeros((0, *out.shape[1:]))

    def add(self, region, values):
        rows, *others = region
        missing = rows.stop - self.first - len(self.sums)
        if missing > 0:
            self.sums = np.concatenate([self.sums, np.zeros((missing, *self.sums.shape[1:]))])
        self.sums[(slice(rows.start - self.first, rows.stop - self.first), *others)] += values

    def write_until(self, row):
        if row > self.first:
            done = self.sums[: row - self.first]
            self.out[self.first : self.first + len(done)] = done
            self.out[self.first + len(done) : row] = 0  # no window had signal there
            self.sums, self.first = self.sums[row - self.first :].copy(), row


def _pieces(volume, axes):
    """Yield positions and voxels of windows with signal, and of the first one, which shows the output shape."""
    first = True
    for places in itertools.product(*(range(len(axis.starts)) for axis in axes)):
        piece = _read(volume, axes, places)
        if first or piece.any():
            yield places, piece
        first = False


def _add(sums, axes, places, prediction):
    """Add the weighted prediction of one window."""
    values = prediction[tuple(axis.within(place) for axis, place in zip(axes, places, strict=True))]
    values = values.astype(np.float64)
    for number, (axis, place) in enumerate(zip(axes, places, strict=True)):
        weights = axis.weights[place][axis.within(place)]
        values *= weights.reshape(-1, *(1,) * (len(axes) - number))
    sums.add(tuple(axis.inside(place) for axis, place in zip(axes, places, strict=True)), values)


def _read(volume, axes, places):
    """Return one window of the volume, `(*window, C)` float32, zero outside the volume."""
    pairs = list(zip(axes, places, strict=True))
    piece = np.zeros((*(axis.window for axis in axes), volume.shape[-1]), np.float32)
    piece[tuple(axis.within(place) for axis, place in pairs)] = volume[tuple(axis.inside(p) for axis, p in pairs)]
    return piece


def _batched(items, size):
    """Yield lists of `size` items, the last one shorter."""
    while batch := list(itertools.islice(items, size)):
        yield batch


def _result(out, shape):
    if out is None:
        return np.empty(shape, np.float32)
    if tuple(out.shape) != shape:
        raise InputError(f"out is {tuple(out.shape)}, but the prediction is {shape}")
    return out


def _check(volume, window, batch_size, overlap, blend):
    if len(window) not in (2, 3) or len(volume.shape) != len(window) + 1 or min(volume.shape) < 1:
        raise InputError(f"windows of {window} do not tile a volume of {tuple(volume.shape)} (sizes and contrasts)")
    if min(window) < 1 or batch_size < 1:
        raise InputError(f"window {window} and batch_size {batch_size} must be positive")
    if not 0 <= overlap < 1:
        raise InputError(f"overlap is {overlap}; it must be at least 0 and less than 1")
    if blend not in BLENDS:
        raise InputError(f"blend is {blend!r}; choose from {', '.join(map(repr, BLENDS))}")
