"""Augmentation, the random changes of training images in the sections `finetuning` and `synthesis` of a config."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from utils.config.sections import ADDED, Section, Share

IN_MM = {  # length in mm -> the key that it replaces
    "translation_mm": "translation",
    "elastic_mm": "elastic_px",
    "elastic_grid_mm": "elastic_grid",
    "blur_mm": "blur_px",
}
HAS_A_SIDE = re.compile("left|(?<!b)right", re.IGNORECASE)


def _ascending(limits):
    if limits[0] > limits[1]:
        raise ValueError(f"{list(limits)} must be the smallest and the largest value, in this order")
    return limits


Limits = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_ascending)]


class AugmentationSection(Section):
    """Largest random changes of a training slice; image and label share one displacement field.

    Lengths are given in pixels (or as a share of the image), or in mm if the pixel size is known.
    """

    translation: Share | None = Field(
        0.1, description="largest translation, as a share of the image size; null: see translation_mm"
    )
    translation_mm: PositiveFloat | None = Field(None, json_schema_extra=ADDED, description="instead of translation")
    rotation_degrees: float = Field(15.0, ge=0, le=180, description="largest rotation, in both directions")
    scale: Share = Field(0.15, description="largest relative enlargement or reduction")
    elastic_px: Annotated[float, Field(ge=0)] | None = Field(
        1.5, description="standard deviation of the elastic displacement, pixels; null: see elastic_mm"
    )
    elastic_mm: PositiveFloat | None = Field(None, json_schema_extra=ADDED, description="instead of elastic_px")
    elastic_grid: PositiveInt | None = Field(
        48,
        description="spacing of the coarse grid of displacements, pixels; a fine grid folds the image (8: 2 % of it)",
    )
    elastic_grid_mm: PositiveFloat | None = Field(None, json_schema_extra=ADDED, description="instead of elastic_grid")
    brightness: float = Field(0.1, ge=0, description="largest shift, in units of the [0, 1] image")
    contrast: Share = Field(0.2, description="largest relative change of contrast")
    mirror: list[Literal["left_right", "anterior_posterior", "inferior_superior"]] = Field(
        [], json_schema_extra=ADDED, description="axes along which an image is mirrored, each with probability 0.5"
    )
    gamma: Limits | None = Field(
        None,
        json_schema_extra=ADDED,
        description="smallest and largest exponent applied to the [0, 1] image; nnU-Net: 0.7, 1.5",
    )
    gamma_probability: Share = Field(0.3, json_schema_extra=ADDED, description="share of images; nnU-Net: 0.3")
    bias_field: float = Field(
        0.0,
        ge=0,
        json_schema_extra=ADDED,
        description="standard deviation of the logarithm of a smooth multiplicative field",
    )
    bias_field_nodes: int = Field(
        4, ge=2, json_schema_extra=ADDED, description="number of independent nodes of the field along each axis"
    )
    bias_field_probability: Share = Field(0.3, json_schema_extra=ADDED, description="share of images")
    blur_px: Limits | None = Field(
        None, json_schema_extra=ADDED, description="smallest and largest sd of the Gaussian, pixels; nnU-Net: 0.5, 1"
    )
    blur_mm: Limits | None = Field(None, json_schema_extra=ADDED, description="instead of blur_px")
    blur_probability: Share = Field(0.2, json_schema_extra=ADDED, description="share of images; nnU-Net: 0.2")
    low_resolution: float = Field(
        1.0,
        ge=1,
        json_schema_extra=ADDED,
        description="largest factor by which the pixel size is increased; nnU-Net: 2",
    )
    low_resolution_probability: Share = Field(
        0.25, json_schema_extra=ADDED, description="share of images; nnU-Net: 0.25"
    )
    noise: float = Field(
        0.0, ge=0, json_schema_extra=ADDED, description="largest sd of Gaussian noise, in units of the [0, 1] image"
    )
    noise_probability: Share = Field(0.1, json_schema_extra=ADDED, description="share of images; nnU-Net: 0.1")

    @model_validator(mode="before")
    @classmethod
    def _one_form_of_each_length(cls, values):
        """Let a length in mm replace the default in pixels; refuse it if a value in pixels is given, too."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for in_mm, other in IN_MM.items():
            if values.get(in_mm) is not None:
                if values.get(other) is not None:
                    raise ValueError(f"{in_mm}: {other} is given too, and both set the same length; remove one of them")
                values[other] = None
            elif other in values and values[other] is None and cls.model_fields[other].default is not None:
                raise ValueError(f"{other}: is null; give a number, or {in_mm}")
        return values

    @model_validator(mode="after")
    def _each_axis_once(self):
        if len(set(self.mirror)) < len(self.mirror):
            raise ValueError(f"mirror: {self.mirror} names an axis twice")
        return self

    def mistakes(self, where, rank, pixel_mm, unknown_because, labels):
        """Yield one line per contradiction with the rest of the config.

        Args:
            where: Name of this section.
            rank: Rank of the network; 2: slices, 3: volumes.
            pixel_mm: Edge of a pixel, mm; None if unknown.
            unknown_because: Why it is unknown.
            labels: Names of the classes that are segmented.
        """
        for key in (key for key in IN_MM if getattr(self, key) is not None):
            if pixel_mm is None:
                yield f"{where}.{key}: the size of a pixel in mm is not known, {unknown_because}; give {IN_MM[key]}"
            elif rank == 3:
                yield f"{where}.{key}: the distance of slices differs between volumes; give {IN_MM[key]}"
        sides = [name for name in labels if HAS_A_SIDE.search(name)]
        if "left_right" in self.mirror and sides:
            yield (
                f"{where}.mirror: left_right would turn labels that have a side into those of the other side "
                f"({', '.join(sides)}); remove left_right"
            )
        if "inferior_superior" in self.mirror and rank == 2:
            yield f"{where}.mirror: inferior_superior lies across slices; it is for network.rank 3"

    def changes(self, pixel_mm=None):
        """Return the keyword arguments of `training.augmentation.Changes`, every length in pixels.

        Args:
            pixel_mm: Edge of a pixel, mm; required if a length is in mm.
        """
        keys = ("rotation_degrees", "elastic_px", "elastic_grid", "brightness", "contrast")
        changes = {key: getattr(self, key) for key in keys} | {"scale": (1 - self.scale, 1 + self.scale)}
        changes["translation"] = self.translation or 0.0
        if self.translation_mm:
            changes["translation_px"] = self.translation_mm / pixel_mm
        if self.elastic_mm:
            changes["elastic_px"] = self.elastic_mm / pixel_mm
        if self.elastic_grid_mm:
            changes["elastic_grid"] = self.elastic_grid_mm / pixel_mm
        if self.mirror:
            changes["mirror"] = list(self.mirror)
        intensities = self._intensities(pixel_mm)
        return changes | ({"intensities": intensities} if intensities else {})

    def _intensities(self, pixel_mm):
        blur = tuple(sd / pixel_mm for sd in self.blur_mm) if self.blur_mm else self.blur_px
        found = {
            "gamma": self.gamma and {"limits": self.gamma},
            "bias_field": self.bias_field and {"sd": self.bias_field, "nodes": self.bias_field_nodes},
            "blur": blur and {"limits": blur},
            "low_resolution": self.low_resolution > 1 and {"largest": self.low_resolution},
            "noise": self.noise and {"largest_sd": self.noise},
        }
        return {
            name: settings | {"probability": getattr(self, f"{name}_probability")}
            for name, settings in found.items()
            if settings
        }


class SynthesisAugmentationSection(AugmentationSection):
    """Largest random changes of a training crop: one displacement field for all; intensities change in inputs only.

    Off by default: crops already have random positions, and interpolation smooths the noise of training images, but not
    of the scans to which the network is applied.
    """

    translation: Share | None = Field(
        0.0, description="largest translation, as a share of the crop size; null: see translation_mm"
    )
    rotation_degrees: float = Field(0.0, ge=0, le=180, description="largest rotation, in both directions")
    scale: Share = Field(0.0, description="largest relative enlargement or reduction")
    elastic_px: Annotated[float, Field(ge=0)] | None = Field(
        0.0, description="standard deviation of the elastic displacement, pixels; null: see elastic_mm"
    )
    brightness: float = Field(0.0, ge=0, description="largest shift of the inputs, in units of the [0, 1] image")
    contrast: Share = Field(0.0, description="largest relative change of contrast of the inputs")
