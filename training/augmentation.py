"""Augmentation: the random numbers behind the changes to training images, both slices and volumes.

All random numbers are drawn on the host, by numpy from a named seed, and sent with the batch as a few small arrays
(only noise is as large as the images); the device computes the changes (`training.warping`,
`training.intensity_changes`). An epoch is therefore the same on every backend, and a resumed run continues with the
same numbers.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from keras import ops

from data.geometry import SLICE_AXES
from training.warping import sampling_positions

log = logging.getLogger("mrccl")

MIRRORS = ("anterior_posterior", "left_right", "inferior_superior")
# Rows of a packed slice run towards posterior, columns to the patient's left, slices upwards.
AXIS_OF = {name: SLICE_AXES.index(end) for name, end in zip(MIRRORS, "PLS", strict=True)}


@dataclass(frozen=True)
class Changes:
    """How large the random changes to an image are; without arguments there are none.

    Attributes:
        rotation_degrees: Largest rotation, degrees; in the H-W plane, even of a volume, whose slices are often thick.
        elastic_px: Standard deviation of the displacements at the nodes of the coarse grid, pixels, along each axis.
        elastic_grid: Distance between those nodes, pixels.
        brightness: Largest shift, in units of the [0, 1] image.
        contrast: Largest relative change of contrast about the image's mean.
        scale: Smallest and largest share of the field of view that fills the image (below 1 enlarges); one number
            for all axes.
        translation: Largest shift of the field of view along each axis, share of the image size.
        translation_px: Largest shift in pixels, instead of `translation`.
        mirror: Names of the axes along which an image is mirrored, each with probability 1/2, see `AXIS_OF`.
        intensities: Further changes of intensities, name: keyword arguments of its function in `INTENSITIES`.
    """

    rotation_degrees: float = 0.0
    elastic_px: float = 0.0
    elastic_grid: float = 8
    brightness: float = 0.0
    contrast: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    translation: float = 0.0
    translation_px: float | None = None
    mirror: Sequence[str] = ()
    intensities: Mapping[str, Mapping[str, Any]] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return all numbers, and the other settings only where they are set; for records and the log."""
        return {key: value for key, value in asdict(self).items() if value or isinstance(value, int | float)}

    def are_moving(self) -> bool:
        """Whether pixels are moved at all: warping takes time and smooths noise."""
        moving = (self.translation, self.rotation_degrees, self.elastic_px, self.translation_px, self.mirror)
        return any(moving) or set(self.scale) != {1}

    def are_any(self) -> bool:
        """Whether anything changes."""
        return self.are_moving() or any((self.brightness, self.contrast, self.intensities))


def draw_changes(
    count: int, image_size: Sequence[int], generator: np.random.Generator, changes: Changes, channels: int = 1
) -> dict[str, np.ndarray]:
    """Draw the random numbers for `count` augmented images.

    Args:
        count: Number of images B.
        image_size: `(H, W)` of slices, `(H, W, D)` of volumes, pixels.
        generator: numpy random generator.
        changes: How large the changes are.
        channels: Contrasts of an image; noise differs between them.

    Returns:
        Dictionary of float32 arrays: `affine (B, 2, 3)` from output to input pixels about the image centre,
        `elastic (B, h, w, 2)` in pixels, `brightness (B,)`, `contrast (B,)`; for volumes `affine (B, 3, 4)` and
        `elastic (B, h, w, d, 3)`. With `intensities`, also the results of their functions.

    Reference:
        arXiv 2205.13109, Sec. II.E names translation, crop and elastic deformation; sizes are ours.
    """
    rank = len(image_size)
    angle = np.radians(generator.uniform(-changes.rotation_degrees, changes.rotation_degrees, count))
    zoom = generator.uniform(*changes.scale, count)
    affine = np.zeros((count, rank, rank + 1))
    if changes.translation_px is None:
        shift, unit = changes.translation, np.asarray(image_size)
    else:
        shift, unit = changes.translation_px, np.ones(rank)
    affine[:, :, rank] = generator.uniform(-shift, shift, (count, rank)) * unit
    affine[:, 0, 0] = affine[:, 1, 1] = zoom * np.cos(angle)
    affine[:, 1, 0] = zoom * np.sin(angle)
    affine[:, 0, 1] = -affine[:, 1, 0]
    affine[:, range(2, rank), range(2, rank)] = zoom[:, None]
    nodes = [max(2, round(size / changes.elastic_grid) + 1) for size in image_size]
    drawn = {
        "affine": affine,
        "elastic": generator.normal(0.0, changes.elastic_px, (count, *nodes, rank)),
        "brightness": generator.uniform(-changes.brightness, changes.brightness, count),
        "contrast": generator.uniform(1 - changes.contrast, 1 + changes.contrast, count),
    }
    mirror, intensities = changes.mirror, changes.intensities or {}
    if mirror or intensities:
        mirroring, *others = generator.spawn(1 + len(INTENSITIES))  # changes do not affect each other's numbers
        affine[:, :, [AXIS_OF[name] for name in mirror]] *= _signs(count, mirror, mirroring)[:, None]
        for (name, draw), own in zip(INTENSITIES.items(), others, strict=True):
            if name in intensities:
                drawn |= draw(count, (*image_size, channels), own, **intensities[name])
    return {name: values.astype("float32") for name, values in drawn.items()}


def _signs(count, mirror, generator):
    """Draw -1 for axes along which an image is mirrored, else 1, `(B, len(mirror))`, independent of other axes."""
    drawn = generator.random((count, len(MIRRORS))) < 0.5
    return np.where(drawn[:, [MIRRORS.index(name) for name in mirror]], -1, 1)


def draw_gamma(count, image_shape, generator, *, limits, probability):
    """Draw exponents `gamma (B,)`: brighter (below 1) and darker (above 1) equally often; 1 for unchanged images.

    Reference:
        nnU-Net (Isensee et al., Nat. Methods 2021), whose default is 0.7 to 1.5 with probability 0.3.
    """
    low, high = limits
    brighter = generator.uniform(min(low, 1), min(high, 1), count)
    darker = generator.uniform(max(low, 1), max(high, 1), count)
    is_brighter = (generator.random(count) < 0.5) & (low < 1) | (high <= 1)
    gamma = np.where(is_brighter, brighter, darker)
    return {"gamma": np.where(_chosen(count, generator, probability), gamma, 1)}


def draw_bias_field(count, image_shape, generator, *, sd, nodes, probability):
    """Draw logarithms of a smooth factor at `nodes` points along each axis, `bias (B, h, w[, d], 1)`; 0: no field."""
    rank = len(image_shape) - 1
    field = generator.normal(0.0, sd, (count, *(nodes,) * rank, 1))
    return {"bias": field * _chosen(count, generator, probability).reshape(-1, *(1,) * (rank + 1))}


def draw_blur(count, image_shape, generator, *, limits, probability):
    """Draw standard deviations of a Gaussian, `blur (B,)`, pixels; 0: no blur."""
    return {"blur": generator.uniform(*limits, count) * _chosen(count, generator, probability)}


def draw_low_resolution(count, image_shape, generator, *, largest, probability):
    """Draw edges of coarser pixels, `coarseness (B,)`, in pixels; uniform in the share of pixels left (nnU-Net)."""
    coarseness = 1 / generator.uniform(1 / largest, 1, count)
    return {"coarseness": np.where(_chosen(count, generator, probability), coarseness, 1)}


def draw_noise(count, image_shape, generator, *, largest_sd, probability):
    """Draw white Gaussian noise, `noise (B, H, W[, D], C)`, with a standard deviation uniform from 0 to the largest.

    It is drawn here because random numbers differ between backends; images without noise cost nothing.
    """
    noise = np.zeros((count, *image_shape), "float32")
    sd = generator.uniform(0, largest_sd, count)
    for number in np.flatnonzero(_chosen(count, generator, probability)):
        noise[number] = generator.standard_normal(image_shape, "float32") * np.float32(sd[number])
    return {"noise": noise}


def _chosen(count, generator, probability):
    return generator.random(count) < probability


INTENSITIES: dict[str, Callable] = {  # the order determines the random numbers of each: add new ones at the end
    "gamma": draw_gamma,
    "bias_field": draw_bias_field,
    "blur": draw_blur,
    "low_resolution": draw_low_resolution,
    "noise": draw_noise,
}


def folded_share(image_size: Sequence[int], changes: Changes, samples: int = 32) -> float:
    """Share of pixels at which the displacement of an image folds, so that the image is read backwards.

    At such pixels, the determinant of the Jacobian, from differences between neighbouring pixels, differs in sign from
    that of the rotation, scale and mirroring of the image.

    Args:
        image_size: `(H, W)`, or `(H, W, D)` for volumes.
        changes: How large the changes are.
        samples: Number of displacements to draw.
    """
    generator, folded, rank = np.random.default_rng(0), [], len(image_size)
    changes = replace(changes, intensities=None)
    for _ in range(samples):
        drawn = draw_changes(1, image_size, generator, changes)
        field = ops.convert_to_numpy(sampling_positions(drawn["affine"], drawn["elastic"], image_size))[0]
        steps = [np.diff(field, axis=axis)[tuple(slice(size - 1) for size in image_size)] for axis in range(rank)]
        turn = np.linalg.det(drawn["affine"][0, :, :rank])
        folded.append(np.mean(np.linalg.det(np.stack(steps, -1)) * turn <= 0))
    return float(np.mean(folded))


def describe_changes(image_size: Sequence[int], changes: Changes) -> None:
    """Log the changes of a run, lengths in pixels, and how much of the images is folded, if any.

    Args:
        image_size: `(H, W)`, or `(H, W, D)` for volumes.
        changes: How large the changes are.
    """
    sizes = ", ".join(f"{key} {value}" for key, value in changes.as_dict().items())
    log.info("augmentation, lengths in pixels: %s", sizes)
    folded = folded_share(image_size, changes) if changes.elastic_px else 0
    if folded:
        log.warning(
            "augmentation: the elastic displacement folds %.2g %% of the pixels, where anatomy is turned inside out; a "
            "coarser elastic_grid or a smaller elastic_px avoids that",
            100 * folded,
        )
