"""Edges of patches: conversion from mm to pixels of the decoder's output, and checks of their settings."""

import math


def coarsening(stage, levels):
    """Return the factor by which the decoder's output is coarser than the image; a full decoder has `levels`."""
    return 2 ** (levels - (stage.decoder_levels or levels))


def patch_edge(stage, levels, image_size, pixel_mm):
    """Return the edge of a patch of a constrained stage.

    Args:
        stage: `ConstrainedStage`.
        levels: Levels of a full decoder.
        image_size: Rows and columns (and slices of a crop), pixels; each a multiple of the factor of the decoder.
        pixel_mm: Edge of a pixel of the image in mm; required if the stage gives its patches in mm.

    Returns:
        `patch_size`, or the number of pixels of the decoder's output nearest to `patch_mm` that divides the image, the
        smaller one of two equally near.
    """
    if stage.patch_mm is None:
        return stage.patch_size
    factor = coarsening(stage, levels)
    common = math.gcd(*(max(1, size // factor) for size in image_size))
    edges = [edge for edge in range(1, common + 1) if common % edge == 0]
    return min(edges, key=lambda edge: abs(edge * factor * pixel_mm - stage.patch_mm))


def mistakes_of_patches(config):
    """Yield mistakes in the patches and regions of the stages of a config with slices."""
    levels, image_size = len(config.network.filters) - 1, config.image_size()
    if len(image_size) != config.network.rank:  # reported by another check
        return
    for name, stage in config.pretraining.stages.items() if config.pretraining else ():
        if stage.method not in ("local", "constrained"):
            continue
        where, sizes = f"pretraining.stages.{name}", list(image_size)
        if (stage.decoder_levels or levels) > levels:
            yield f"{where}.decoder_levels: {stage.decoder_levels}, but network.filters makes {levels} decoder levels"
            continue
        factor = coarsening(stage, levels)
        coarser = f"pixels of a decoder output that is {factor} times coarser than the image"
        if stage.method == "local":
            if math.prod(size // factor // stage.region_size for size in sizes) < 2:
                yield f"{where}.region_size: {stage.region_size} {coarser}; fewer than two regions fit into {sizes}"
            continue
        if in_vain := list(_lengths_in_vain(stage, config.network.rank, config.slices.pixel_size)):
            yield from (f"{where}.{mistake}" for mistake in in_vain)
            continue
        edge = patch_edge(stage, levels, sizes, config.slices.pixel_size)
        if any(size % (edge * factor) for size in sizes) and stage.patch_mm is None:
            yield f"{where}.patch_size: {edge} {coarser} do not divide {sizes}"
        distance = edge * factor * (config.slices.pixel_size or 0)
        if stage.positive_within_mm is not None and stage.positive_within_mm < distance:
            yield (
                f"{where}.positive_within_mm: {stage.positive_within_mm:g}, but patches lie {distance:g} mm apart, and "
                "an anchor would have no positive but itself; raise it, or use smaller patches"
            )


def _lengths_in_vain(stage, rank, pixel_mm):
    """Yield lengths in mm that cannot be converted to pixels."""
    for key in ("patch_mm", "positive_within_mm"):
        if getattr(stage, key) is None:
            continue
        if rank == 3:
            yield f"{key}: is for slices, whose distance a config does not know; with network.rank 3 remove it"
        elif pixel_mm is None:
            yield f"{key}: needs slices.pixel_size, without which a pixel has no length; set that, or remove {key}"
