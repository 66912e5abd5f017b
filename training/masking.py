"""The hidden pixels of an image, which the network must restore."""

from collections.abc import Sequence

import numpy as np


def draw_hidden(
    count: int, image_size: Sequence[int], share: float, generator: np.random.Generator, block_px: int | None = None
) -> np.ndarray:
    """Draw the hidden pixels of some images: single ones, or whole blocks.

    Blocks are the cells of a grid with a random offset for each image. Each cell is hidden with the same probability,
    so the share of hidden pixels is correct on average, with larger deviations for larger blocks. Cells at the border
    are truncated.

    Args:
        count: Number of images B.
        image_size: `(H, W)` of slices, `(H, W, D)` of volumes.
        share: Share of the pixels that are hidden, in (0, 1].
        generator: numpy random generator.
        block_px: Edge of the square or cubic blocks in pixels; None: single pixels.

    Returns:
        Boolean, `(B, H, W[, D], 1)`.

    Reference:
        Single pixels: arXiv 2205.13109, Sec. II.B. Blocks: masked image modelling as in OpenMind, arXiv 2412.17041;
        the random offset is ours.
    """
    if block_px is None:
        return generator.random((count, *image_size, 1), dtype="float32") < share
    offsets = generator.integers(0, block_px, (count, len(image_size)))
    cells = [-(-(size + block_px - 1) // block_px) for size in image_size]  # enough for every offset
    is_hidden = generator.random((count, *cells), dtype="float32") < share
    for axis, size in enumerate(image_size):
        # The cell of each pixel along this axis, for each image; the other axes are broadcast.
        index = (np.arange(size) + offsets[:, axis, None]) // block_px
        index = index.reshape(count, *(size if other == axis else 1 for other in range(len(image_size))))
        is_hidden = np.take_along_axis(is_hidden, index, axis=axis + 1)
    return is_hidden[..., None]
