"""Local contrast: a region of one view agrees with the same region of the other view, and with no other region."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from keras import ops

from losses.similarity import Tensor, unit_vectors
from utils.checks import InputError

EXCLUDED = -1e9  # finite, so that a region without comparisons has a zero gradient


class Regions(NamedTuple):
    """Which regions of a feature map are compared, see `draw_regions`.

    Attributes:
        region_size: Edge of a region, pixels.
        regions: Regions R per slice.
        negatives: Negatives of each region.
    """

    region_size: int
    regions: int
    negatives: int


def local_contrastive_loss(
    map_a: Tensor,
    map_b: Tensor,
    *,
    region_size: int = 3,
    regions: int = 13,
    negatives: int = 5,
    temperature: float = 0.1,
    seed: int,
) -> Tensor:
    """Compute local contrast between two intensity-augmented views of the same slices.

    Draws regions and their negatives from `seed` and returns `region_contrast`. To draw new regions in every step, call
    the two functions separately.

    Args:
        map_a: Feature maps of the first views, `(B, H, W, F)` (or `(B, H, W, D, F)`).
        map_b: Feature maps of the second views, same shape.
        region_size: Edge of a region, pixels of the feature map.
        regions: Regions R drawn in each slice.
        negatives: Number of other regions of the slice with which each is contrasted, in both views.
        temperature: Positive float t, dimensionless.
        seed: Integer; equal seeds draw equal regions, on every backend.

    Returns:
        Loss per slice, `(B,)` float32.

    Raises:
        InputError: For shapes that differ, or an invalid setting.

    Reference:
        Chaitanya et al., NeurIPS 2020, L^R.
    """
    batch, *size = tuple(map_a.shape)[:-1]
    drawn = draw_regions(batch, size, np.random.default_rng(seed), region_size, regions, negatives)
    return region_contrast(map_a, map_b, **drawn, region_size=region_size, temperature=temperature)


def draw_regions(
    count: int,
    map_size: Sequence[int],
    generator: np.random.Generator,
    region_size: int = 3,
    regions: int = 13,
    negatives: int = 5,
) -> dict[str, np.ndarray]:
    """Draw regions that do not overlap, and the negatives of each.

    Each slice is covered by a grid of regions with a random offset; `regions` of its cells are drawn.

    Args:
        count: Number of slices B.
        map_size: Size of the feature map, pixels.
        generator: numpy random generator.
        region_size: Edge of a region, pixels.
        regions: Regions R per slice.
        negatives: Negatives of each region, drawn among the other R - 1.

    Returns:
        Dictionary with `corners (B, R, rank)` int32, the lowest indices of each region, -1 where the map holds fewer
        than R regions; and `is_negative (B, R, R)`, boolean.

    Raises:
        InputError: If fewer than two regions fit into the map, or a number is below 1.
    """
    _check_numbers(map_size, region_size=region_size, regions=regions, negatives=negatives)
    corners = np.full((count, regions, len(map_size)), -1, "int32")
    is_negative = np.zeros((count, regions, regions), bool)
    for slice_corners, slice_negatives in zip(corners, is_negative, strict=True):
        # If the size is not a multiple of the region, the grid may begin a few pixels later.
        offset = [generator.integers(length % region_size + 1) for length in map_size]
        cells = [length // region_size for length in map_size]
        drawn = generator.permutation(int(np.prod(cells)))[:regions]
        slice_corners[: len(drawn)] = np.stack(np.unravel_index(drawn, cells), -1) * region_size + offset
        for place in range(len(drawn)):
            others = np.delete(np.arange(len(drawn)), place)
            slice_negatives[place, generator.permutation(others)[:negatives]] = True
    return {"corners": corners, "is_negative": is_negative}


def region_contrast(
    map_a: Tensor,
    map_b: Tensor,
    corners: Tensor,
    is_negative: Tensor,
    *,
    region_size: int = 3,
    temperature: float = 0.1,
) -> Tensor:
    """Contrast corresponding regions of two views with other regions of the same slice.

    For a region r of one view, its partner r' in the other, and its negatives n in both views:

        cost(r) = -log( exp(s(r, r') / t) / (exp(s(r, r') / t) + sum_n exp(s(r, n) / t)) )

    s is the cosine similarity of the concatenated features of a region's pixels.

    Args:
        map_a: `(B, H, W[, D], F)`.
        map_b: `(B, H, W[, D], F)`.
        corners: From `draw_regions`, `(B, R, rank)`; -1 marks a missing region.
        is_negative: From `draw_regions`, `(B, R, R)`.
        region_size: Edge of a region, pixels.
        temperature: Positive float t, dimensionless.

    Returns:
        Loss per slice, the mean over its regions and both directions, `(B,)` float32; 0 without regions. A region
        without negatives costs 0 and counts in the mean.

    Raises:
        InputError: For shapes that do not match, or a temperature that is not positive.

    Reference:
        Chaitanya et al., NeurIPS 2020, L^R; negatives from both views as in their code.
    """
    _check_maps(map_a, map_b, corners, is_negative, temperature)
    corners = ops.cast(corners, "int32")
    a, b = (unit_vectors(regions_of(values, corners, region_size)) for values in (map_a, map_b))
    within_a, within_b, across = (ops.einsum("brf,bqf->brq", x, y) / temperature for x, y in ((a, a), (b, b), (a, b)))
    partner = ops.einsum("brf,brf->br", a, b) / temperature
    cost = 0.0
    for within, between in ((within_a, across), (within_b, ops.transpose(across, (0, 2, 1)))):
        both = ops.concatenate([ops.where(is_negative, logits, EXCLUDED) for logits in (within, between)], axis=-1)
        cost = cost + ops.softplus(ops.logsumexp(both, axis=-1) - partner) / 2
    weight = ops.cast(corners[..., 0] >= 0, "float32")
    return ops.sum(weight * cost, axis=-1) / ops.maximum(ops.sum(weight, axis=-1), 1.0)


def regions_of(feature_map: Tensor, corners: Tensor, region_size: int) -> Tensor:
    """Read regions out of a map.

    Args:
        feature_map: `(B, H, W[, D], F)`.
        corners: Lowest indices of each region, integer `(B, R, rank)`; -1 reads the region at 0.
        region_size: Edge of a region, pixels.

    Returns:
        `(B, R, region_size**rank * F)`, the concatenated features of a region's pixels, in row-major order.
    """
    corners = ops.cast(corners, "int32")
    *size, features = feature_map.shape[1:]
    grid = np.stack(np.meshgrid(*[np.arange(region_size)] * len(size), indexing="ij"), -1).reshape(-1, len(size))
    pixels = ops.maximum(corners, 0)[:, :, None, :] + ops.convert_to_tensor(grid.astype("int32"))
    strides = np.cumprod([1, *size[:0:-1]])[::-1].astype("int32")
    index = ops.sum(pixels * ops.convert_to_tensor(strides.copy()), axis=-1)
    batch, regions = ops.shape(index)[:2]
    flat = ops.reshape(feature_map, (batch, -1, features))
    values = ops.take_along_axis(flat, ops.reshape(index, (batch, -1, 1)), axis=1)
    return ops.reshape(values, (batch, regions, len(grid) * features))


def _check_numbers(map_size, **numbers):
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1 is needed")
    edge = numbers["region_size"]
    if np.prod([length // edge for length in map_size]) < 2:
        raise InputError(f"region_size: a feature map of {tuple(map_size)} holds fewer than two regions of edge {edge}")


def _check_maps(map_a, map_b, corners, is_negative, temperature):
    shapes = [tuple(values.shape) for values in (map_a, map_b, corners, is_negative)]
    rank = len(shapes[0]) - 2
    if shapes[0] != shapes[1] or rank not in (2, 3):
        raise InputError(f"local contrast: maps {shapes[0]} and {shapes[1]} must be equal, (B, H, W[, D], F)")
    regions = shapes[2][1]
    if shapes[2][2:] != (rank,) or shapes[3][1:] != (regions, regions):
        raise InputError(
            f"local contrast: corners {shapes[2]} and is_negative {shapes[3]} must be (B, R, {rank}) and (B, R, R)"
        )
    if temperature <= 0:
        raise InputError(f"temperature is {temperature}; it must be positive")
