"""Hidden pixels: their share, whole blocks, and the same blocks from a slow loop."""

import numpy as np
import pytest

from training.masking import draw_hidden


class Recorded:
    """A generator that records what it draws."""

    def __init__(self, seed):
        self.generator, self.drawn = np.random.default_rng(seed), {}

    def integers(self, *arguments):
        return self.drawn.setdefault("offsets", self.generator.integers(*arguments))

    def random(self, shape, dtype):
        return self.drawn.setdefault("cells", self.generator.random(shape, dtype=dtype))


@pytest.mark.parametrize(("size", "edge"), [((16, 20), 4), ((17, 13), 5), ((8, 12, 9), 3), ((6, 6), 1)])
def test_blocks_equal_a_loop_over_pixels(size, edge):
    generator = Recorded(3)
    found = draw_hidden(5, size, 0.6, generator, edge)
    assert found.shape == (5, *size, 1) and found.dtype == bool
    for image in range(5):
        for place in np.ndindex(size):
            shifted = [p + offset for p, offset in zip(place, generator.drawn["offsets"][image], strict=True)]
            cell = tuple(position // edge for position in shifted)
            assert found[(image, *place, 0)] == (generator.drawn["cells"][(image, *cell)] < np.float32(0.6))


def is_whole(mask, offsets, edge):
    """Tell whether every block of the grid with these offsets is completely hidden or visible."""
    blocks = {}
    for place in np.ndindex(mask.shape):
        cell = tuple((p + offset) // edge for p, offset in zip(place, offsets, strict=True))
        blocks.setdefault(cell, set()).add(bool(mask[place]))
    return all(len(values) == 1 for values in blocks.values())


@pytest.mark.parametrize(("size", "edge"), [((12, 15), 3), ((9, 9, 6), 3)])
def test_blocks_are_whole_on_a_grid_with_an_offset_of_its_own_in_each_image(size, edge):
    masks = draw_hidden(12, size, 0.5, np.random.default_rng(1), edge)[..., 0]
    fitting = [[o for o in np.ndindex((edge,) * len(size)) if is_whole(mask, o, edge)] for mask in masks]
    assert all(len(offsets) == 1 for offsets in fitting)  # no other grid fits either
    assert len({offsets[0] for offsets in fitting}) > 4


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("edge", [None, 1, 4, 7])
@pytest.mark.parametrize("size", [(32, 40), (16, 16, 16)])
def test_the_share_is_met_on_average_everywhere(size, edge, share):
    masks = draw_hidden(600, size, share, np.random.default_rng(2), edge)
    assert masks.mean() == pytest.approx(share, abs=0.02)
    # Also at corners and borders, where blocks are cut off.
    for corner in np.ndindex((2,) * len(size)):
        assert masks[(slice(None), *(-c for c in corner), 0)].mean() == pytest.approx(share, abs=0.07)


def test_single_pixels_are_drawn_as_before_there_were_blocks():
    found = draw_hidden(3, (8, 9), 0.1, np.random.default_rng(5))
    np.testing.assert_array_equal(found, np.random.default_rng(5).random((3, 8, 9, 1), dtype="float32") < 0.1)


def test_everything_is_hidden_with_a_share_of_one():
    assert draw_hidden(2, (8, 8), 1.0, np.random.default_rng(0), 3).all()
