"""The config sections that several steps share: every key with its type, default and meaning.

The section for the scans is in `data.py`, those of single steps in `pretraining.py` and `finetuning.py`.
"""

import typing
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from utils.checks import whole_epochs
from utils.paths import composed, expanded

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="letters, digits, - and _")]
Share = Annotated[float, Field(ge=0, le=1)]


def _ascending(percentiles):
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"{list(percentiles)} must ascend within 0 to 100")
    return percentiles


def _printable(value):
    if not str(value).isprintable():
        raise ValueError("has characters that cannot be printed, such as a line break")
    return value


Location = Annotated[Path, AfterValidator(expanded), AfterValidator(_printable)]
FileName = Annotated[str, AfterValidator(expanded), AfterValidator(_printable)]
PathPattern = Annotated[str, AfterValidator(composed), AfterValidator(_printable)]
Percentiles = Annotated[tuple[float, float], AfterValidator(_ascending)]
# Marks keys added later: at their default values, they do not affect the hashes.
ADDED: dict[str, Any] = {"added": True}


def _truths_among_numbers(value, annotation):
    """Return the booleans inside a list or dictionary that should hold numbers."""
    leaves = _leaves(annotation)
    if not leaves & {int, float} or any(isinstance(leaf, type) and issubclass(leaf, BaseModel) for leaf in leaves):
        return set()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = [_truths_among_numbers(part, annotation) for part in values]
    return set().union({part for part in values if isinstance(part, bool)}, *inner)


def _leaves(annotation):
    """Return the plain types that a type such as `dict[str, list[int]]` consists of."""
    parts = typing.get_args(annotation)
    return set().union(*map(_leaves, parts)) if parts else {annotation if isinstance(annotation, type) else None}


class Section(BaseModel):
    """One block of a config: typed, frozen, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_and_no_are_no_numbers(cls, values):
        """Refuse `yes` and `no` for numbers: YAML reads them as true and false, and Python treats these as 1 and 0."""
        fields = cls.model_fields
        for key, value in values.items() if isinstance(values, dict) else ():
            if key not in fields or fields[key].annotation is bool:
                continue
            # Nested sections check their own values.
            found = {value} if isinstance(value, bool) else _truths_among_numbers(value, fields[key].annotation)
            for truth in found:
                raise ValueError(f"{key}: found {'yes' if truth else 'no'} (true or false), expected another value")
        return values


def drop_added_defaults(section, plain):
    """Remove keys added later that have their default values, from a section and all sections inside it."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if field.json_schema_extra == ADDED and value == field.default:
            plain.pop(name, None)
            continue
        parts, plain_parts = (v if isinstance(value, dict) else {"": v} for v in (value, plain.get(name)))
        for key, part in parts.items():
            if isinstance(part, Section):
                drop_added_defaults(part, plain_parts[key])


class SeriesFile(Section):
    """A series of images in one 4D file; its channels are called `<name>_1`, `<name>_2`, ..."""

    file: PathPattern = Field(description="path below data.root, with {subject}")
    volumes: PositiveInt = Field(description="number of volumes that every file must have")


class CrossValidation(Section):
    """Every subject is a test subject once; each fold is pretrained and finetuned without its test subjects."""

    folds: int = Field(ge=2, description="number of folds")
    validation: PositiveInt = Field(description="validation subjects in each fold")


class SplitLists(Section):
    """The subjects of each set, by name."""

    train: list[str] = Field(description="used for pretraining without labels; annotated subjects are drawn from these")
    val: list[str] = Field(description="validation of pretraining and finetuning")
    test: list[str] = Field(description="never used in training")


class SplitSizes(Section):
    """Numbers of labelled subjects per set, drawn by the seed; unlabelled subjects are used for pretraining as well.

    In a dataset without labels (contrast synthesis), the numbers refer to all subjects, and the rest is not used.
    """

    train: PositiveInt = Field(description="labelled subjects for training")
    val: PositiveInt = Field(description="labelled subjects for validation")
    test: PositiveInt = Field(description="labelled subjects never used in training")


# The kinds of entries, so that a mistake is reported for one kind only.
KINDS: dict[str, type[Section] | None] = {"<path>": None, "<series>": SeriesFile, "<file>": None}
KINDS |= {"<folds>": CrossValidation, "<lists>": SplitLists, "<sizes>": SplitSizes}
KINDS |= {"<number>": None, "<name>": None}


def _kind_of_contrast(entry):
    return "<series>" if isinstance(entry, dict | SeriesFile) else "<path>"


def _kind_of_splits(splits):
    if isinstance(splits, CrossValidation) or isinstance(splits, dict) and {"folds", "validation"} & splits.keys():
        return "<folds>"
    if isinstance(splits, SplitLists) or isinstance(splits, dict) and any(isinstance(v, list) for v in splits.values()):
        return "<lists>"
    return "<sizes>" if isinstance(splits, dict | SplitSizes) else "<file>"


ContrastFile = Annotated[
    Annotated[PathPattern, Tag("<path>")] | Annotated[SeriesFile, Tag("<series>")], Discriminator(_kind_of_contrast)
]
Splits = Annotated[
    Annotated[FileName, Tag("<file>")]
    | Annotated[SplitSizes, Tag("<sizes>")]
    | Annotated[SplitLists, Tag("<lists>")]
    | Annotated[CrossValidation, Tag("<folds>")],
    Discriminator(_kind_of_splits),
]


class ConstraintMapSection(Section):
    """Constraint maps (step 1)."""

    contrasts: list[Name] = Field(
        min_length=1, description="the contrast space: the contrasts that are clustered, at least two channels"
    )
    spaces: dict[Name, list[Name]] = Field(
        {}, json_schema_extra=ADDED, description="further contrast spaces, each with its own maps; name: its contrasts"
    )
    clusters: PositiveInt = Field(
        20, description="number of k-means classes; 20 to 30 are best (results/constraint_maps)"
    )
    components: PositiveInt = Field(4, description="principal components kept, at most the number of contrasts")
    tv_weight: PositiveFloat = Field(40.0, description="weight of total-variation denoising (higher: less smoothing)")
    percentiles: Percentiles = Field((1.0, 99.0), description="percentiles of the foreground mapped to 0 and 1")


class SliceSection(Section):
    """Slices (step 2)."""

    image_size: tuple[PositiveInt, PositiveInt] = Field(description="rows and columns of a slice, pixels")
    pixel_size: PositiveFloat | None = Field(
        None, description="in-plane pixel size, in the unit of the affine; null: no resampling"
    )
    min_foreground: Share = Field(
        0.05, description="slices with a smaller share of foreground pixels are excluded from pretraining"
    )
    percentiles: Percentiles = Field(
        (1.0, 99.0), json_schema_extra=ADDED, description="as in constraint_maps; for configs without that section"
    )


class NetworkSection(Section):
    """The U-Net."""

    filters: list[PositiveInt] = Field([16, 32, 64, 128, 128, 128], min_length=2, description="filters per level")
    rank: Literal[2, 3] = Field(2, json_schema_extra=ADDED, description="2: slices; 3: crops of volumes")
    remat: bool = Field(
        False,
        json_schema_extra=ADDED,
        description="recompute activations instead of storing them: less memory, more time",
    )


class CropSection(Section):
    """Crops of volumes or slices, for networks of rank 3 and for synthesis."""

    size: list[PositiveInt] = Field(
        min_length=2, max_length=3, description="rows, columns and, with network.rank 3, slices; in packed pixels"
    )
    min_foreground: Share = Field(0.25, description="crops with a smaller share of foreground are redrawn")
    validation: PositiveInt = Field(4, description="number of crops per validation subject, drawn once")


class TrainingSection(Section):
    """How one network is trained."""

    epochs: PositiveInt = Field(description="total number of epochs")
    steps_per_epoch: PositiveInt | None = Field(
        None, description="steps per epoch; null: as many as cover the training slices once"
    )
    batch_size: PositiveInt = Field(description="slices per step")
    learning_rate: PositiveFloat = Field(description="initial learning rate of Adam")
    plateau_epochs: PositiveInt = Field(
        10, description="number of epochs without improvement after which the learning rate is halved"
    )
    mixed_precision: bool = Field(False, description="16-bit arithmetic in the network; losses are computed in float32")
    schedule: Literal["plateau", "cosine", "poly"] = Field(
        "plateau",
        json_schema_extra=ADDED,
        description="plateau: rate halved after plateau_epochs; cosine: decays to 0; poly: (1 - t)^0.9, as in nnU-Net",
    )
    warm_up: Share = Field(
        0.0,
        json_schema_extra=ADDED,
        description="share of the epochs during which the learning rate increases linearly",
    )
    keep: Literal["best", "last"] = Field(
        "best", json_schema_extra=ADDED, description="weights to keep: lowest validation loss, or last epoch"
    )

    @model_validator(mode="after")
    def _an_epoch_has_the_full_rate(self):
        shares = {key: getattr(self, key) for key in ("head_first", "warm_up") if getattr(self, key, 0)}
        taken = sum(whole_epochs(share, self.epochs) for share in shares.values())
        if taken >= self.epochs:
            said = " and ".join(f"{key} {share:g}" for key, share in shares.items())
            cure = f"lower {' or '.join(shares)}, or raise epochs"
            raise ValueError(f"{said}: no epoch of {self.epochs} is left at the full rate; {cure}")
        return self

    @property
    def needs_validation(self):
        """Whether validation subjects select weights or control learning rates."""
        return self.keep == "best" or self.schedule == "plateau"


class FinetuningTrainingSection(TrainingSection):
    """How one network is finetuned: as in pretraining, and the learning rates of pretrained layers."""

    head_first: Share = Field(
        0.0,
        json_schema_extra=ADDED,
        description="share of the epochs at the start that train only layers without pretrained weights",
    )
    head_learning_rate: PositiveFloat | None = Field(
        None, json_schema_extra=ADDED, description="learning rate of these epochs; null: learning_rate"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        json_schema_extra=ADDED,
        description="factor of the learning rate per level, from the output back to the input; 1: equal for all",
    )

    @model_validator(mode="after")
    def _head_rate_has_a_phase(self):
        if self.head_learning_rate is not None and not self.head_first:
            raise ValueError("head_learning_rate: has no effect without head_first; set both, or remove it")
        return self
