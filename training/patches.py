"""Patches of slices and volumes: their classes in the constraint map, and the choice of anchors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.effective import PatchCounts
from utils.checks import InputError

BLOCK = 256  # constraint maps read at a time


def assign_patch_classes(constraint_maps: Any, patch_px: int) -> np.ndarray:
    """Assign to each patch the most frequent class among its pixels.

    Args:
        constraint_maps: Integer classes, 0 background, `(N, H, W)`, or `(N, H, W, D)` of volumes; a numpy array, or a
            `data.store.slices.StoredArray`, which is read block by block.
        patch_px: Edge of a patch in pixels of the map, along every axis; must divide H, W and D.

    Returns:
        Classes `(N, P)` int16, patches in row-major order, as in `models.projection.project_patches`. Ties go to the
        lowest class, so a patch that is half background counts as background.

    Raises:
        InputError: For patches that do not tile the map.

    Reference:
        Majority rule and 4 x 4 patches: Umapathy et al., Med. Phys. 2024; the rule for ties is ours.
    """
    count, *sizes = constraint_maps.shape
    if any(size % patch_px for size in sizes):
        raise InputError(f"constraint maps: patches of {patch_px} pixels do not fill {tuple(sizes)}; use smaller ones")
    classes = np.empty((count, math.prod(size // patch_px for size in sizes)), np.int16)
    for start in range(0, count, BLOCK):
        classes[start : start + BLOCK] = _majority(constraint_maps[start : start + BLOCK], patch_px)
    return classes


def _majority(maps, patch_px):
    """Return the most frequent class of each patch of some maps, `(n, P)`."""
    count, *sizes = maps.shape
    patches, rank = [size // patch_px for size in sizes], len(sizes)
    split = maps.reshape(count, *(part for number in patches for part in (number, patch_px)))
    pixels = split.transpose(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    pixels = pixels.reshape(count * math.prod(patches), patch_px**rank)
    best = np.zeros(len(pixels), np.int16)
    best_votes = (pixels == 0).sum(1)
    for number in range(1, int(maps.max(initial=0)) + 1):
        votes = (pixels == number).sum(1)
        wins = votes > best_votes
        best[wins], best_votes[wins] = number, votes[wins]
    return best.reshape(count, math.prod(patches))


def draw_anchors(
    patch_classes: np.ndarray, anchors_per_slice: int, generator: np.random.Generator, wanted: np.ndarray | None = None
) -> np.ndarray:
    """Draw anchors among the foreground patches of each slice, without replacement.

    Args:
        patch_classes: `(B, P)` int; 0 and -1 are background.
        anchors_per_slice: A.
        generator: numpy random generator.
        wanted: Anchors of each slice, `(B,)`, at most A; None: A.

    Returns:
        Patch numbers `(B, A)` int32; -1 where a slice has fewer foreground patches than anchors, or wants fewer.
    """
    order = generator.random(patch_classes.shape)
    order[patch_classes <= 0] = 2.0  # background is sorted after all foreground patches
    first = min(anchors_per_slice, order.shape[1])
    anchors = np.argpartition(order, first - 1, axis=1)[:, :first]  # twenty times faster than sorting all
    anchors = np.take_along_axis(anchors, np.argsort(np.take_along_axis(order, anchors, axis=1), axis=1), axis=1)
    anchors = anchors.astype("int32")
    anchors[np.take_along_axis(patch_classes, anchors, axis=1) <= 0] = -1
    if wanted is not None:
        anchors[np.arange(first) >= np.asarray(wanted)[:, None]] = -1
    missing = anchors_per_slice - anchors.shape[1]
    return np.pad(anchors, ((0, 0), (0, max(0, missing))), constant_values=-1)


def foreground_of(patch_classes: np.ndarray) -> np.ndarray:
    """Number of foreground patches of each image, `(n,)`, from classes `(n, P)`."""
    return (patch_classes > 0).sum(axis=1)


def draw_compared(
    patch_classes: np.ndarray, counts: PatchCounts, most_anchors: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw anchors, and set the number of their nearest patches where it differs between images.

    Args:
        patch_classes: `(B, P)` int; 0 and -1 are background.
        counts: `training.effective.PatchCounts`.
        most_anchors: Largest number of anchors of any image, A.
        generator: numpy random generator.

    Returns:
        `anchors (B, A)` int32 from `draw_anchors`; with a share of nearest patches also `nearest_patches (B,)` int32.
    """
    foreground = foreground_of(patch_classes)
    wanted = counts.anchors_of(foreground) if counts.anchors_share else None
    compared = {"anchors": draw_anchors(patch_classes, most_anchors, generator, wanted)}
    return compared | ({"nearest_patches": counts.nearest_of(foreground)} if counts.nearest_share else {})


def patch_centres(sizes: Sequence[int], patch_px: int) -> np.ndarray:
    """Centres of the patches of a map in pixels, `(P, axes)` float32, patches in row-major order."""
    grid = np.indices([size // patch_px for size in sizes]).reshape(len(sizes), -1).T
    return ((grid + 0.5) * patch_px).astype("float32")
