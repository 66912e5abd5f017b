"""Windows over a volume: with the identity as network, any windows return the volume."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.prediction.sliding_window import predict_volume
from utils.checks import InputError


class Network:
    """Stands in for a network; records every batch shape."""

    def __init__(self, function=lambda batch: batch):
        self.function, self.shapes = function, []

    def predict_on_batch(self, batch):
        self.shapes.append(batch.shape)
        return self.function(batch)


def random_volume(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@st.composite
def tilings(draw):
    rank = draw(st.sampled_from([2, 3]))
    lengths = st.integers(1, 17)
    sizes, window = (draw(st.tuples(*[lengths] * rank)) for _ in range(2))
    return sizes, window, draw(st.sampled_from([0.0, 0.25, 0.5, 0.75])), draw(st.integers(1, 5))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tilings(), st.sampled_from(["gaussian", "linear"]))
def test_a_network_that_changes_nothing_gives_the_volume_back_to_the_bit(tiling, blend):
    sizes, window, overlap, batch_size = tiling
    volume, network = random_volume(*sizes, 2), Network()
    found = predict_volume(network, volume, window, batch_size=batch_size, overlap=overlap, blend=blend)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, volume)
    assert set(network.shapes) == {(batch_size, *window, 2)}


def starts_by_hand(size, window, overlap):
    """Return the fewest evenly spaced windows, flush with both ends, at most `(1 - overlap) window` apart."""
    if window >= size:
        return [-((window - size) // 2)]
    count = 2
    while (size - window) / (count - 1) > max(1, int(window * (1 - overlap))):
        count += 1
    return [round(k * (size - window) / (count - 1)) for k in range(count)]


def blended_by_hand(volume, window, overlap, blend, function):
    """Return the weighted mean of all windows, summed directly, for networks with one output channel."""
    sizes = volume.shape[:-1]
    sums, weights = np.zeros(sizes), np.zeros(sizes)
    for corner in itertools.product(*(starts_by_hand(n, w, overlap) for n, w in zip(sizes, window, strict=True))):
        piece = np.zeros((*window, volume.shape[-1]), np.float32)
        places = {}
        for offset in np.ndindex(*window):
            place = tuple(c + o for c, o in zip(corner, offset, strict=True))
            if all(0 <= p < n for p, n in zip(place, sizes, strict=True)):
                piece[offset], places[offset] = volume[place], place
        predicted = function(piece[None])[0, ..., 0]
        for offset, place in places.items():
            distance = [abs(o - (w - 1) / 2) for o, w in zip(offset, window, strict=True)]
            if blend == "linear":
                weight = np.prod([(w + 1) / 2 - d for d, w in zip(distance, window, strict=True)])
            else:
                weight = np.exp(-sum((d / (w / 8)) ** 2 / 2 for d, w in zip(distance, window, strict=True)))
            sums[place] += weight * predicted[offset]
            weights[place] += weight
    return (sums / weights)[..., None]


@pytest.mark.parametrize("blend", ["gaussian", "linear"])
@pytest.mark.parametrize(
    ("sizes", "window", "overlap"),
    [((11, 7, 5), (4, 4, 4), 0.5), ((9, 3, 6), (4, 5, 6), 0.25), ((13, 10), (6, 4), 0.6)],
)
def test_overlapping_predictions_are_blended_as_by_hand(sizes, window, overlap, blend):
    volume, ramp = random_volume(*sizes, 2), random_volume(*window, seed=1)

    def depends_on_the_window(batch):
        return (ramp * batch[..., 0] + batch.mean(axis=tuple(range(1, batch.ndim)), keepdims=True)[..., 0])[..., None]

    found = predict_volume(Network(depends_on_the_window), volume, window, batch_size=3, overlap=overlap, blend=blend)
    expected = blended_by_hand(volume, window, overlap, blend, depends_on_the_window)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_batch_size_changes_nothing():
    volume, ramp = random_volume(19, 9, 12, 1), random_volume(8, 4, 6, 1)
    predict = lambda size: predict_volume(Network(lambda x: x * ramp), volume, (8, 4, 6), batch_size=size)  # noqa: E731
    expected = predict(1)
    for size in (2, 7, 500):
        np.testing.assert_array_equal(predict(size), expected)


def test_a_volume_within_the_window_is_padded_with_zeros_about_its_middle():
    seen = []
    volume = random_volume(5, 8, 3, 1)
    found = predict_volume(Network(lambda x: seen.append(x) or 2 * x), volume, (8, 8, 4), batch_size=1)
    np.testing.assert_array_equal(found, 2 * volume)
    np.testing.assert_array_equal(seen[0], np.pad(volume, [(1, 2), (0, 0), (0, 1), (0, 0)])[None])


def test_pieces_are_read_and_rows_written_as_they_are_needed(tmp_path):
    class Lazy:
        """A volume that is never in memory as a whole."""

        shape, largest = (40, 6, 5, 2), 0

        def __getitem__(self, region):
            rows, columns, depths = (np.arange(part.start, part.stop, dtype=np.float32) for part in region)
            self.largest = max(self.largest, rows.size * columns.size * depths.size)
            values = rows[:, None, None] + 100 * columns[None, :, None] + 1000 * depths
            return np.stack([values, -values], axis=-1)

    written = []

    class Rows(np.memmap):
        def __setitem__(self, rows, values):
            written.append((rows.start, rows.stop))
            super().__setitem__(rows, values)

    volume = Lazy()
    out = np.memmap(tmp_path / "out", np.float32, "w+", shape=(40, 6, 5, 1)).view(Rows)
    network = Network(lambda batch: batch[..., :1])
    assert predict_volume(network, volume, (8, 4, 5), batch_size=3, out=out) is out
    np.testing.assert_array_equal(out, volume[0:40, 0:6, 0:5][..., :1])
    assert written[0][0] == 0 and written[-1][1] == 40 and max(stop - start for start, stop in written) <= 8
    assert all(one[1] == other[0] for one, other in itertools.pairwise(written)), "each row is written once"


def test_what_cannot_be_tiled_is_refused():
    volume = random_volume(6, 6, 6, 1)
    for options, message in (
        ({"overlap": 1.0}, "overlap is 1.0"),
        ({"blend": "cosine"}, "blend is 'cosine'; choose from 'gaussian', 'linear'"),
        ({"batch_size": 0}, "batch_size 0 must be positive"),
        ({"window": (4, 4)}, r"windows of \(4, 4\) do not tile a volume of \(6, 6, 6, 1\)"),
        ({"window": (4, 0, 4)}, r"window \(4, 0, 4\)"),
        ({"out": np.zeros((6, 6, 6, 2))}, r"out is \(6, 6, 6, 2\), but the prediction is \(6, 6, 6, 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            predict_volume(Network(), volume, **({"window": (4, 4, 4), "batch_size": 2} | options))
    with pytest.raises(InputError, match=r"gives \(2, 2, 4, 4, 1\) for windows of \(4, 4, 4\)"):
        predict_volume(Network(lambda x: x[:, ::2]), volume, (4, 4, 4), batch_size=2)


@pytest.mark.parametrize("where", [(0, 0, 0), (20, 3, 9), (9, 13, 4)])
def test_windows_without_signal_are_not_predicted_and_count_as_zero(where):
    volume, window = np.zeros((24, 16, 12, 1), np.float32), (6, 4, 4)
    volume[tuple(slice(first, first + 3) for first in where)] = 1
    network = Network(lambda batch: 3 * batch + 7)

    def silent_on_air(piece):
        return (3 * piece + 7) * piece.any()

    found = predict_volume(network, volume, window, batch_size=2)
    np.testing.assert_allclose(found, blended_by_hand(volume, window, 0.5, "gaussian", silent_on_air), atol=1e-5)
    assert len(network.shapes) * 2 < 30  # of 385 windows
    assert not predict_volume(network, np.zeros_like(volume), window, batch_size=2).any()
