"""From a volume to axial slices of a fixed size, and back to the grid of the volume."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel import orientations

# Rows run towards posterior, columns to the patient's left, slices upwards: the radiological convention.
SLICE_AXES = ("P", "L", "S")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # from the world coordinates of DICOM and ITK to those of NIfTI, and back
EXACT = 1e-6  # accuracy of positions, in voxels or pixels
MM3_PER_ML = 1000.0


def voxel_ml(affine):
    """Return the volume of a voxel in mL: the determinant of an affine `(4, 4)` in mm, including shear."""
    return abs(float(np.linalg.det(np.asarray(affine, np.float64)[:3, :3]))) / MM3_PER_ML


def axial_turns(affine):
    """Return functions that reorient a volume so that its axial slices lie along the third axis, and back.

    Args:
        affine: `(4, 4)`, voxel to world in RAS+; None: the slices already lie along it.

    Returns:
        Two functions: from the axes on disk, `(X, Y, Z, ...)`, to rows, columns and slices; and back.
    """
    if affine is None:
        return np.asarray, np.asarray
    on_disk, slices = orientations.io_orientation(affine), orientations.axcodes2ornt(SLICE_AXES)
    there, back = orientations.ornt_transform(on_disk, slices), orientations.ornt_transform(slices, on_disk)
    return (
        lambda array: orientations.apply_orientation(array, there),
        lambda array: np.ascontiguousarray(orientations.apply_orientation(array, back)),
    )


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """The mapping between one subject's voxel grid and its slices.

    The volume is reoriented to rows P, columns L, slices S (only axes are swapped and flipped, nothing is
    interpolated), resampled in-plane to square pixels if `pixel_size` is given, and cropped or padded around its
    centre.

    Args:
        shape: `(X, Y, Z)` of the volume on disk.
        affine: `(4, 4)`, voxel to world, RAS+.
        pixel_size: Side of a pixel in the unit of the affine, or None to keep the voxels as they are.
        image_size: `(H, W)` of a slice.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    pixel_size: float | None
    image_size: tuple[int, int]

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(int(length) for length in self.shape))
        object.__setattr__(self, "affine", np.asarray(self.affine, np.float64))
        object.__setattr__(self, "image_size", tuple(int(length) for length in self.image_size))
        if len(self.shape) != 3 or self.affine.shape != (4, 4) or len(self.image_size) != 2:
            raise ValueError(
                f"a slice grid needs a 3D shape, a 4x4 affine and a 2D image size, "
                f"got {self.shape}, {self.affine.shape} and {self.image_size}"
            )

    @property
    def spacing(self):
        """Voxel size `(3,)` along the axes on disk, in the unit of the affine."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def pixel_spacing(self):
        """The two edge lengths of a pixel of an axial slice on disk, in the unit of the affine."""
        return tuple(float(length) for length in self._turned_spacing[:2])

    @property
    def slice_spacing(self):
        """Slice spacing along the third axis, in the unit of the affine."""
        return float(self._turned_spacing[2])

    def share_outside(self, mask):
        """Return the share of a mask's voxels `(X, Y, Z)` that no slice shows, from 0 to 1; 0 for an empty mask."""
        rows, columns = (axis.is_shown() for axis in self._axes)
        turned = orientations.apply_orientation(np.asarray(mask, bool), self._turn)
        total = np.count_nonzero(turned)
        return 1 - np.count_nonzero(turned[rows][:, columns]) / total if total else 0.0

    @property
    def shows_everything(self):
        """Whether all voxels of the volume lie inside the slices."""
        return all(axis.is_shown().all() for axis in self._axes)

    def to_slices(self, volume, order=1):
        """Cut a volume into slices.

        Args:
            volume: `(X, Y, Z)` or `(X, Y, Z, C)`.
            order: 1 for images (linear, anti-aliased if pixels grow; float32), 0 for labels (nearest, dtype kept).

        Returns:
            `(slices, H, W)` or `(slices, H, W, C)`, inferior to superior; zero beyond the field of view.
        """
        volume = np.asarray(volume)
        if volume.shape[:3] != self.shape:
            raise ValueError(f"the volume is {volume.shape}, but this slice grid was made for {self.shape}")
        turned = orientations.apply_orientation(volume, self._turn)
        positions = [axis.positions_of_pixels() for axis in self._axes]
        return np.ascontiguousarray(_resample(np.moveaxis(turned, 2, 0), positions, order, fill=0))

    def to_volume(self, slices, order=1, fill=0):
        """Map slices back to the grid from which they were cut.

        Args:
            slices: `(slices, H, W)` or `(slices, H, W, K)`.
            order: 1 for images and probabilities (linear, float32), 0 for labels (nearest, dtype kept).
            fill: Value outside the slices: a number, or `(K,)`, one per channel; for class probabilities,
                `[1, 0, ..., 0]` is background with certainty.

        Returns:
            `(X, Y, Z)` or `(X, Y, Z, K)`. The half pixel beyond the outermost pixel centres counts as inside.
        """
        slices = np.asarray(slices)
        expected = (self.slices, *self.image_size)
        if slices.shape[:3] != expected:
            raise ValueError(f"the slices are {slices.shape}, but this slice grid makes {expected}")
        slices = _resample(slices, [axis.positions_of_voxels() for axis in self._axes], order, fill)
        return np.ascontiguousarray(orientations.apply_orientation(np.moveaxis(slices, 0, 2), self._turn_back))

    @property
    def slices(self):
        """Number of slices."""
        return self._turned_shape[2]

    def to_dict(self):
        """Return plain numbers for JSON; `crop`, the first row and column kept, is informative only."""
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "pixel_size": self.pixel_size,
            "image_size": list(self.image_size),
            "crop": [axis.offset for axis in self._axes],
        }

    @classmethod
    def from_dict(cls, values):
        """Rebuild the grid from the values of `to_dict`."""
        return cls(values["shape"], np.array(values["affine"]), values["pixel_size"], values["image_size"])

    @cached_property
    def _turn(self):
        on_disk = orientations.io_orientation(self.affine)
        return orientations.ornt_transform(on_disk, orientations.axcodes2ornt(SLICE_AXES))

    @cached_property
    def _turn_back(self):
        on_disk = orientations.io_orientation(self.affine)
        return orientations.ornt_transform(orientations.axcodes2ornt(SLICE_AXES), on_disk)

    @cached_property
    def _turned_shape(self):
        return _by_new_axis(self._turn, self.shape)

    @cached_property
    def _turned_spacing(self):
        return _by_new_axis(self._turn, self.spacing)

    @cached_property
    def _axes(self):
        return tuple(
            _Axis(self._turned_shape[i], self.image_size[i], (self.pixel_size or spacing) / spacing)
            for i, spacing in enumerate(self._turned_spacing[:2])
        )


@dataclass(frozen=True)
class _Axis:
    """One in-plane axis: `length` voxels on disk, `pixels` in a slice, each pixel `ratio` voxels long.

    Positions refer to centres: voxel or pixel i extends from i - 0.5 to i + 0.5.
    """

    length: int
    pixels: int
    ratio: float

    @property
    def resampled_length(self):
        return max(1, round(self.length / self.ratio))

    @property
    def offset(self):
        """First pixel of the slice on the resampled axis; negative if the slice is padded."""
        return (self.resampled_length - self.pixels) // 2

    def positions_of_pixels(self):
        """Positions of the pixels, in voxels; the centre of the axis stays in the centre."""
        from_middle = np.arange(self.pixels) + self.offset - (self.resampled_length - 1) / 2
        return from_middle * self.ratio + (self.length - 1) / 2

    def positions_of_voxels(self):
        """Positions of the voxels, in pixels: the inverse of `positions_of_pixels`."""
        from_middle = np.arange(self.length) - (self.length - 1) / 2
        return from_middle / self.ratio + (self.resampled_length - 1) / 2 - self.offset

    def is_shown(self):
        """Whether each voxel lies within the pixels, boolean `(length,)`."""
        where = self.positions_of_voxels()
        return (where >= -0.5 - EXACT) & (where <= self.pixels - 0.5 + EXACT)


def _by_new_axis(turn, values):
    """Reorder one value per axis on disk to one value per axis after `turn`."""
    turned = [None] * 3
    for value, (new_axis, _) in zip(values, turn, strict=True):
        turned[int(new_axis)] = value
    return tuple(turned)


def _resample(slices, positions, order, fill):
    """Sample slices `(S, h, w, ...)` at fractional rows and columns (`positions`); `fill` where they lie outside."""
    lengths = slices.shape[1:3]
    sampled = _nearest(slices, positions) if order == 0 else _linear(slices, positions)
    for axis, (where, length) in enumerate(zip(positions, lengths, strict=True), start=1):
        is_outside = (where < -0.5 - EXACT) | (where > length - 0.5 + EXACT)
        sampled[(slice(None),) * axis + (is_outside,)] = fill
    return sampled


def _nearest(labels, positions):
    """Take the nearest label; of two or four equally near labels, take the most frequent.

    Exact halves are the rule if pixels are two voxels long. Always rounding to one side would shift the labels by half
    a voxel relative to the images, and rounding towards the middle would enlarge structures there. Remaining ties
    alternate between the sides in a checkerboard pattern.
    """
    rows, columns = (_neighbours(x, n) for x, n in zip(positions, labels.shape[1:3], strict=True))
    nearest = [labels[:, row][:, :, column] for row in rows for column in columns]
    if len(nearest) == 1:
        return nearest[0]
    is_dark = np.indices(nearest[0].shape[1:3]).sum(axis=0) % 2 == 1
    is_dark = is_dark.reshape(1, *is_dark.shape, *[1] * (labels.ndim - 3))
    votes = [
        len(nearest) * sum(corner == other for other in nearest) + np.where(is_dark, number, -number)
        for number, corner in enumerate(nearest)
    ]
    return np.take_along_axis(np.stack(nearest), np.argmax(votes, axis=0)[None], axis=0)[0]


def _neighbours(positions, length):
    """Return the nearest index to each position, or the two index lists below and above if some are exact halves."""
    below, above = np.ceil(positions - 0.5 - EXACT), np.floor(positions + 0.5 + EXACT)
    indices = [np.clip(index, 0, length - 1).astype(int) for index in (below, above)]
    return indices[:1] if np.array_equal(*indices) else indices


def _linear(images, positions):
    """Interpolate along rows, then along columns, in float32; shifts by whole pixels (crop and pad) are copied."""
    sampled = images.astype(np.float32, copy=False)
    for axis, where in enumerate(positions, start=1):
        whole = np.round(where)
        length = images.shape[axis]
        if np.allclose(where, whole, atol=EXACT) and np.all(np.diff(whole) == 1):
            sampled = np.take(sampled, np.clip(whole, 0, length - 1).astype(int), axis=axis)
        else:
            sampled = _weighted_sum(sampled, _linear_weights(where, length), axis)
    return sampled


def _linear_weights(positions, length):
    """Return a triangle filter, `(positions, length)`, whose rows sum to 1; it widens for steps above one sample.

    The wider filter averages over all samples within a larger pixel (anti-aliasing). At the border, the filter is
    truncated and rescaled, which extends the outermost sample.
    """
    step = np.diff(positions).mean() if len(positions) > 1 else 1.0
    distance = np.abs(np.clip(positions, 0, length - 1)[:, None] - np.arange(length))
    weights = np.maximum(0, 1 - distance / max(1.0, step))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _weighted_sum(array, weights, axis):
    """Multiply one axis of an array by `weights (out, in)`."""
    head, tail = array.shape[:axis], array.shape[axis + 1 :]
    flat = np.ascontiguousarray(array).reshape(int(np.prod(head)), array.shape[axis], int(np.prod(tail)))
    return np.matmul(weights, flat).reshape(*head, len(weights), *tail)
