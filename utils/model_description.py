"""model.json, which describes how to use a finetuned model: the same classes write and read it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from utils.checks import InputError
from utils.config.data import Layout, Wanted
from utils.config.load import explain
from utils.config.sections import ContrastFile, Name, PathPattern, Percentiles, Section
from utils.label_colours import Colour, Label, legend_of
from utils.runs import read_json

AGAIN = "run the cell again"


def _numbered(labels):
    if sorted(labels.values()) != list(range(1, len(labels) + 1)):
        raise ValueError(f"{labels} must number the classes from 1 to {len(labels)}")
    return labels


class _Lenient(Section):
    """Models of later versions may have further keys, which are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class SliceShape(_Lenient):
    """Size of the slices in pixels, and their pixel size in mm (None: that of the scan)."""

    image_size: tuple[PositiveInt, PositiveInt]
    pixel_size: PositiveFloat | None


Ends = tuple[PositiveFloat, PositiveFloat]


class TrainingField(_Lenient):
    """Properties of the training scans; see `data.field_of_view`."""

    pixel_mm: Ends | None = None
    slice_mm: Ends | None = None
    foreground_outside: float | None = Field(None, ge=0, le=1)


class Preprocessing(_Lenient):
    """How scans become input of a network; keys that earlier versions did not write have defaults."""

    name: str | None = None
    simulated: bool = False
    layout: Layout = "pattern"
    resample_to: Name | None = None
    bias_correction: list[Name] = []
    mask: PathPattern | None
    percentiles: Percentiles
    slices: SliceShape
    voxel_size_known: bool = True
    filters: list[PositiveInt] = Field(min_length=2)
    config_hash: str | None = None

    def as_json(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Return what is written: the keys that were given, except those in `leave_out`."""
        return self.model_dump(mode="json", exclude_unset=True, exclude=set(leave_out))


class EncoderDescription(Preprocessing):
    """encoder.json of an exported stage of pretraining."""

    contrasts: list[Name] | None
    contrasts_one_by_one: list[Name] | None = None
    stage: str
    rank: PositiveInt
    subjects: NonNegativeInt


class ModelDescription(Preprocessing):
    """model.json of either kind of model: with `targets` it synthesises contrasts, with `labels` it segments."""

    contrasts: list[Name] = Field(min_length=1)
    files: dict[Name, ContrastFile] = Field(min_length=1)
    field: TrainingField | None = None
    volumes: dict[Name, tuple[NonNegativeInt, PositiveInt]] = {}
    trained_on: list[str] = []
    split_hash: str | None = None
    labels: dict[Name, PositiveInt] = {}
    targets: list[Name] = []
    shared: ClassVar[set[str]] = {"contrasts", "percentiles", "resample_to", "bias_correction"}

    @property
    def input_size(self) -> tuple[int, ...]:
        """Size of the network's input, in pixels or voxels."""
        return self.slices.image_size

    @property
    def makes(self) -> list[str]:
        """Names of its classes without background, or of the contrasts that it synthesises."""
        return self.targets or list(self.labels)

    def wanted(self, root: Path = Path(), contrasts: Mapping[str, Any] | None = None, **more: Any) -> Wanted:
        """Return what it needs from a folder; `contrasts` None: all contrasts known in training."""
        read = Wanted(root, contrasts or self.files, resample_to=self.resample_to, bias_correction=self.bias_correction)
        return replace(read, layout=self.layout, **more)

    def head(self) -> dict[str, Any]:
        """Return the arguments of `models.unet.build_unet` that depend on the kind of model."""
        raise NotImplementedError

    def what_must_agree(self) -> dict[str, Any]:
        """Return what averaged models must share: their preprocessing and the meaning of their outputs."""
        found = self.model_dump(mode="json", include=self.shared | {"slices"})
        slices = found.pop("slices")
        return found | {key: slices[key] for key in ("image_size", "pixel_size")} | {"mask": bool(self.mask)}


class SegmentationModel(ModelDescription):
    """model.json of a model that segments slices."""

    labels: Annotated[dict[Name, PositiveInt], Field(min_length=1), AfterValidator(_numbered)]
    voxel_size_known: bool
    head_block: bool = False
    label_colours: dict[Name, Colour] = {}
    shared: ClassVar[set[str]] = ModelDescription.shared | {"labels", "voxel_size_known"}

    def legend(self) -> list[Label]:
        """Its classes with their colours."""
        return legend_of(self.labels, self.label_colours)

    def head(self) -> dict[str, Any]:
        return {"outputs": len(self.labels) + 1, "head_block": self.head_block}


class SynthesisModel(ModelDescription):
    """model.json of a model that synthesises contrasts, window by window."""

    targets: list[Name] = Field(min_length=1)
    target_intensities: dict[Name, dict[str, tuple[float, float]]] = {}
    crop_size: list[PositiveInt] = Field(min_length=2, max_length=3)
    overlap: float = Field(ge=0, lt=1)
    shared: ClassVar[set[str]] = ModelDescription.shared | {"targets", "crop_size", "overlap"}

    @property
    def input_size(self) -> tuple[int, ...]:
        """Size of the network's input, in pixels or voxels."""
        return tuple(self.crop_size)

    def head(self) -> dict[str, Any]:
        return {"rank": len(self.crop_size), "head": "synthesis", "outputs": len(self.targets)}


def read_model_description(path: Path) -> ModelDescription:
    """Read model.json of a cell of step 4.

    Args:
        path: The file.

    Returns:
        A `SynthesisModel` if it has `targets`, else a `SegmentationModel`.

    Raises:
        InputError: The file is missing or not JSON, lacks keys, or has an unusable value; one line each.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a description of a model; {AGAIN}")
    schema = SynthesisModel if "targets" in content else SegmentationModel
    required = {key for key, field in schema.model_fields.items() if field.is_required()}
    if missing := required - content.keys():
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; {AGAIN}")
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise InputError([f"{path}: {line}; {AGAIN}" for line in explain(error, schema)]) from None


def check_agreement(models: Mapping[Any, ModelDescription]) -> None:
    """Refuse models that cannot be averaged: their preprocessing and the meaning of their outputs must agree.

    Args:
        models: Name of each model, for the message -> its description; file patterns may differ.

    Raises:
        InputError: One line for each model that differs from the first.
    """
    (first, expected), *others = ((name, model.what_must_agree()) for name, model in models.items())
    lines = []
    for name, found in others:
        differing = [key for key in expected.keys() | found.keys() if found.get(key) != expected.get(key)]
        if differing:
            what = "; ".join(f"{key} {found.get(key)} and {expected.get(key)}" for key in sorted(differing))
            lines.append(f"{name}: does not match {first} ({what}); give matching models")
    if lines:
        raise InputError(lines)
