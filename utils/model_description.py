"""model.json, which describes how to use a finetuned model, checked completely before it is used."""

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from utils.checks import InputError
from utils.config.data import Layout
from utils.config.load import explain
from utils.config.sections import ContrastFile, Name, PathPattern, Percentiles, Section
from utils.runs import read_json

AGAIN = "run the cell again"


def _numbered(labels):
    if sorted(labels.values()) != list(range(1, len(labels) + 1)):
        raise ValueError(f"{labels} must number the classes from 1 to {len(labels)}")
    return labels


class _Lenient(Section):
    """Models of later versions may have more keys."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Slices(_Lenient):
    image_size: tuple[PositiveInt, PositiveInt]
    pixel_size: PositiveFloat | None


Ends = tuple[PositiveFloat, PositiveFloat]


class _Field(_Lenient):
    """Properties of the training scans; see `data.field_of_view`."""

    pixel_mm: Ends | None = None
    slice_mm: Ends | None = None
    foreground_outside: float | None = Field(None, ge=0, le=1)


class _Model(_Lenient):
    """Keys of both tasks; models of earlier versions lack those with a default."""

    contrasts: list[Name] = Field(min_length=1)
    layout: Layout = "pattern"
    resample_to: Name | None = None
    bias_correction: list[Name] = []
    files: dict[Name, ContrastFile] = Field(min_length=1)
    filters: list[PositiveInt] = Field(min_length=2)
    mask: PathPattern | None
    percentiles: Percentiles
    slices: _Slices
    field: _Field | None = None
    volumes: dict[Name, tuple[NonNegativeInt, PositiveInt]] = {}


class _SegmentationModel(_Model):
    labels: Annotated[dict[Name, PositiveInt], Field(min_length=1), AfterValidator(_numbered)]
    voxel_size_known: bool
    head_block: bool = False


class _SynthesisModel(_Model):
    targets: list[Name] = Field(min_length=1)
    crop_size: list[PositiveInt] = Field(min_length=2, max_length=3)
    overlap: float = Field(ge=0, lt=1)


def read_model_description(path):
    """Read model.json of a cell of step 4.

    Args:
        path: The file.

    Returns:
        Its content, a plain dictionary with defaults filled in; a model with `targets` synthesises contrasts.

    Raises:
        InputError: The file is missing or not JSON, lacks keys, or has an unusable value; one line each.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a description of a model; {AGAIN}")
    schema = _SynthesisModel if "targets" in content else _SegmentationModel
    defaults = {key: field.default for key, field in schema.model_fields.items() if not field.is_required()}
    if missing := schema.model_fields.keys() - content.keys() - defaults.keys():
        raise InputError(f"{path}: lacks {', '.join(sorted(missing))}; {AGAIN}")
    try:
        schema.model_validate(content)
    except ValidationError as error:
        raise InputError([f"{path}: {line}; {AGAIN}" for line in explain(error, schema)]) from None
    return defaults | content


def check_agreement(models):
    """Refuse models that cannot be averaged: their preprocessing and the meaning of their outputs must agree.

    Args:
        models: Name of each, for the message, -> content of its model.json; file patterns may differ.

    Raises:
        InputError: One line for each model that differs from the first.
    """
    (first, expected), *others = ((name, what_must_agree(model)) for name, model in models.items())
    lines = []
    for name, found in others:
        differing = [key for key in expected.keys() | found.keys() if found.get(key) != expected.get(key)]
        if differing:
            what = "; ".join(f"{key} {found.get(key)} and {expected.get(key)}" for key in sorted(differing))
            lines.append(f"{name}: does not match {first} ({what}); give matching models")
    if lines:
        raise InputError(lines)


def what_must_agree(model):
    """Return what averaged models must share: their preprocessing and the meaning of their outputs."""
    keys = ("contrasts", "labels", "targets", "voxel_size_known", "percentiles", "crop_size", "overlap")
    keys += ("resample_to", "bias_correction")
    slices = {key: model["slices"][key] for key in ("image_size", "pixel_size")}
    found = {key: model[key] for key in keys if key in model} | slices | {"mask": bool(model["mask"])}
    return found
