"""The grid of voxels that the files of a subject share, and whether a file lies on it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Largest difference of two affines, in voxels per voxel and voxels of origin, that still counts as one grid: headers
# store float32, and quaternion and matrix forms of the same geometry differ by about 1e-4.
GRID_TOLERANCE = 1e-3
ONE_GRID = 'all files of a subject must share one grid, or set data.resample_to (README, "Preparing data")'
SAMPLES = 12  # places along each axis at which two grids are compared


class Grid(NamedTuple):
    """Shape and affine that the files of a subject must share.

    Attributes:
        path: The file that both were read from; None: unknown.
        shape: `(X, Y, Z)`.
        affine: `(4, 4)`, voxel to world.
        axes: Length of every axis in that file's header; None for folders.
    """

    path: Path | None
    shape: tuple
    affine: np.ndarray
    axes: tuple | None = None


def grid_problems(subject: str, path: Path, image: Any, grid: Grid | None, cure: str = ONE_GRID) -> list[str]:
    """Compare shape and affine with the subject's grid (None: nothing to compare with)."""
    if grid is None:
        return []
    other = f"'{grid.path.name}'" if grid.path else "the scan"
    if image.shape[:3] != grid.shape:
        return [f"{subject}: '{path}' is {image.shape[:3]} but {other} is {grid.shape}; {cure}"]
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    axes = np.abs(image.affine[:3, :3] - grid.affine[:3, :3]).max(axis=0) / spacing
    origin = np.abs(image.affine[:3, 3] - grid.affine[:3, 3]).max() / spacing.min()
    worst = max(axes.max(), origin)
    if worst > GRID_TOLERANCE:
        what = "origin" if origin > axes.max() else "voxel axes"
        return [f"{subject}: '{path}' and {other} differ in {what} by {worst:.3g} voxels; {cure}"]
    return []


def share_covered(grid: Grid, image: Any) -> float:
    """Estimate the share of a grid that an image covers, from 0 to 1, on a coarse raster of points.

    Args:
        grid: `Grid`.
        image: Anything with `shape` and `affine`.
    """
    axes = [np.linspace(0, length - 1, SAMPLES) for length in grid.shape]
    places = np.stack([*np.meshgrid(*axes, indexing="ij"), np.ones((SAMPLES,) * 3)]).reshape(4, -1)
    index = (np.linalg.inv(image.affine) @ grid.affine @ places)[:3].T
    inside = (index >= -0.5) & (index <= np.array(image.shape[:3]) - 0.5)
    return float(inside.all(axis=1).mean())
