"""Shared by the simulated anatomies: a grid in patient space, smooth random fields, and a canvas for tissues.

World coordinates are RAS+ in mm, as in NIfTI: +x is the patient's right, +y the front, +z the head.
"""

from dataclasses import dataclass

import numpy as np

from data.simulation.tissues import TISSUE_INDEX

PARTS = 64  # most structures per subject with their own tissue parameters, such as bowel loops


@dataclass(frozen=True)
class Anatomy:
    """One subject's tissues on a grid finer than the images.

    Attributes:
        tissue: Row of `data.simulation.tissues.TISSUES` per point, `(x, y, z)` uint8.
        part: Number of the structure in [0, PARTS), 0 unless its tissue has its own factor, `(x, y, z)` uint8.
        label: Value of the reference segmentation, `(x, y, z)` uint8.
        axes: Positions of the grid points along x, y and z in mm.
    """

    tissue: np.ndarray
    part: np.ndarray
    label: np.ndarray
    axes: tuple


def grid_axes(centre, field_of_view, points):
    """Return the positions (mm) of the cell centres that divide a field of view evenly, one array per axis."""
    return tuple(
        middle + extent * ((np.arange(number) + 0.5) / number - 0.5)
        for middle, extent, number in zip(centre, field_of_view, points, strict=True)
    )


def affine_of(axes):
    """Return the `(4, 4)` voxel-to-world matrix of a grid given by its axes (mm)."""
    affine = np.diag([*((axis[-1] - axis[0]) / max(len(axis) - 1, 1) for axis in axes), 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    return affine


def smooth_field(axes, length, generator, fields=1):
    """Draw smooth random fields of mean 0 and standard deviation 1 at every point.

    Each is a sum of cubic B-splines with random weights and knots `length` apart. The knots have fixed positions in
    patient space, so that the same seed gives the same field on a finer or coarser grid of the same extent.

    Args:
        axes: Positions along x, y, z in mm.
        length: Correlation length in mm.
        generator: `numpy.random.Generator`.
        fields: Number of independent fields.

    Returns:
        `(fields, x, y, z)` float32.
    """
    bases = []
    for axis in axes:
        half_cell = (axis[-1] - axis[0]) / max(len(axis) - 1, 1) / 2
        first, last = np.round([(axis[0] - half_cell) / length, (axis[-1] + half_cell) / length], 6)
        knots = np.arange(np.floor(first) - 1, np.ceil(last) + 2) * length
        distance = np.abs(axis[:, None] - knots) / length
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = np.maximum(2 - distance, 0) ** 3 / 6
        basis = np.where(distance < 1, near, far)
        bases.append((basis / np.linalg.norm(basis, axis=1, keepdims=True)).astype(np.float32))
    weights = generator.standard_normal((fields, *(basis.shape[1] for basis in bases)), dtype=np.float32)
    return np.einsum("fabc,xa,yb,zc->fxyz", weights, *bases, optimize=True)


def rotation(x_degrees=0.0, y_degrees=0.0, z_degrees=0.0):
    """Return the `(3, 3)` rotation about x, then y, then z (right-handed, degrees)."""
    turn = np.eye(3)
    for axis, degrees in enumerate((x_degrees, y_degrees, z_degrees)):
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        first, second = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[[first, second], [first, second]] = cosine
        step[first, second], step[second, first] = -sine, sine
        turn = step @ turn
    return turn


class Canvas:
    """The points of a subject's grid in the coordinates of the anatomy, painted tissue by tissue.

    Args:
        points: Anatomical coordinates of every grid point in mm, `(3, x, y, z)`.
        background: Tissue to start from.
    """

    def __init__(self, points, background):
        self.shape = points.shape[1:]
        self.points = points.reshape(3, -1)
        self.tissue = np.full(self.points.shape[1], TISSUE_INDEX[background], np.uint8)
        self.part = np.zeros_like(self.tissue)
        self.label = np.zeros_like(self.tissue)

    def near(self, centre, reach):
        """Return the indices of the points within `reach` mm of a centre along every axis (scalar or 3 numbers)."""
        reach = np.broadcast_to(reach, 3)
        inside = np.abs(self.points[0] - centre[0]) < reach[0]
        for axis in (1, 2):
            inside &= np.abs(self.points[axis] - centre[axis]) < reach[axis]
        return np.flatnonzero(inside)

    def local(self, index, centre, semi_axes, turn=None):
        """Return coordinates `(3, len(index))` in units of the semi-axes of an ellipsoid, in its rotated frame."""
        offset = self.points[:, index] - np.asarray(centre, np.float32)[:, None]
        if turn is not None:
            offset = turn.T.astype(np.float32) @ offset
        return offset / np.asarray(semi_axes, np.float32)[:, None]

    def ellipsoid(self, centre, semi_axes, turn=None):
        """Return the indices of the points inside an ellipsoid."""
        index = self.near(centre, max(semi_axes) if turn is not None else semi_axes)
        return index[np.sum(self.local(index, centre, semi_axes, turn) ** 2, axis=0) < 1]

    def tube(self, start, end, radius, waviness=0.0, phase=0.0):
        """Return the indices of the points within `radius` mm of a segment, and their distance over the radius.

        Args:
            start, end: End points in mm.
            radius: Radius in mm.
            waviness: Amplitude in mm of one sideways oscillation of the tube along its length.
            phase: Phase of the oscillation in radians.
        """
        start, end = np.asarray(start, np.float32), np.asarray(end, np.float32)
        direction = end - start
        index = self.near((start + end) / 2, np.abs(direction) / 2 + radius + waviness)
        offset = self.points[:, index] - start[:, None]
        along = np.clip(direction @ offset / (direction @ direction), 0, 1)
        centre_line = along * direction[:, None]
        centre_line[1] += waviness * np.sin(2 * np.pi * along + phase)
        centre_line[0] += waviness * np.cos(2 * np.pi * along + phase)
        distance = np.linalg.norm(offset - centre_line, axis=0) / radius
        return index[distance < 1], distance[distance < 1]

    def paint(self, index, tissue, part=0, label=0, over=None):
        """Assign a tissue, a part and a label to points; with `over`, only to points that hold one of those tissues."""
        if over is not None:
            index = index[self.has(index, over)]
        self.tissue[index] = TISSUE_INDEX[tissue]
        self.part[index] = part
        self.label[index] = label

    def has(self, index, tissues):
        """Return a boolean array of the points that hold one of the named tissues."""
        return np.isin(self.tissue[index], [TISSUE_INDEX[name] for name in tissues])

    def anatomy(self, axes):
        """Return the painted tissues as an `Anatomy` on the grid of those axes."""
        return Anatomy(*(values.reshape(self.shape) for values in (self.tissue, self.part, self.label)), axes)
