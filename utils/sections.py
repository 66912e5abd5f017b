"""The sections of a config that several steps share: every key, its type, default and meaning.

The scans are in `sections_data.py`; single steps in `sections_pretraining.py` and `sections_finetuning.py`.
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
ADDED: dict[str, Any] = {
    "added": True
}  # marks a key that came later: while it has its default, hashes are those of before


def _truths_among_numbers(value, annotation):
    """The true and false inside a list or dictionary that holds numbers, at most two of them."""
    leaves = _leaves(annotation)
    if not leaves & {int, float} or any(isinstance(leaf, type) and issubclass(leaf, BaseModel) for leaf in leaves):
        return set()
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    inner = [_truths_among_numbers(part, annotation) for part in values]
    return set().union({part for part in values if isinstance(part, bool)}, *inner)


def _leaves(annotation):
    """The plain types that a type such as `dict[str, list[int]]` is made of."""
    parts = typing.get_args(annotation)
    return set().union(*map(_leaves, parts)) if parts else {annotation if isinstance(annotation, type) else None}


class Section(BaseModel):
    """One block of a config: typed, frozen, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_and_no_are_no_numbers(cls, values):
        """YAML reads `yes` and `no` as true and false, which Python would take for 1 and 0."""
        fields = cls.model_fields
        for key, value in values.items() if isinstance(values, dict) else ():
            if key not in fields or fields[key].annotation is bool:
                continue
            # Sections inside this one look at their own values.
            found = {value} if isinstance(value, bool) else _truths_among_numbers(value, fields[key].annotation)
            for truth in found:
                raise ValueError(f"{key}: found {'yes' if truth else 'no'} (true or false), expected another value")
        return values


def drop_added_defaults(section, plain):
    """Remove the keys that came later and have their default, from a section and all sections inside it."""
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
    """A contrast series in one 4D file; its channels are called `<name>_1`, `<name>_2`, ..."""

    file: PathPattern = Field(description="path below data.root, with {subject}")
    volumes: PositiveInt = Field(description="number of volumes that every file must have")


class CrossValidation(Section):
    """Every subject is tested once; each fold is pretrained and finetuned without its test subjects."""

    folds: int = Field(ge=2, description="number of folds")
    validation: PositiveInt = Field(description="subjects of each fold kept for validation")


class SplitLists(Section):
    """Subjects by name."""

    train: list[str] = Field(description="pretraining without labels; annotated subjects are drawn from these")
    val: list[str] = Field(description="validation of pretraining and finetuning")
    test: list[str] = Field(description="never seen in training")


class SplitSizes(Section):
    """How many labelled subjects go where, drawn by the seed; subjects without a label train as well.

    In a data set without labels (contrast synthesis) the numbers are of all subjects, and the others are unused.
    """

    train: PositiveInt = Field(description="labelled subjects to train on")
    val: PositiveInt = Field(description="labelled subjects for validation")
    test: PositiveInt = Field(description="labelled subjects never seen in training")


# Which of several kinds an entry is, so that a mistake in it is reported for that kind only.
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
    """Step 1."""

    contrasts: list[Name] = Field(min_length=1, description="the contrast space, at least two channels")
    spaces: dict[Name, list[Name]] = Field(
        {}, json_schema_extra=ADDED, description="more contrast spaces, each with maps of its own; name: its contrasts"
    )
    clusters: PositiveInt = Field(20, description="k-means classes; 20 to 30 do best (results/constraint_maps)")
    components: PositiveInt = Field(4, description="principal components kept, at most the number of contrasts")
    tv_weight: PositiveFloat = Field(40.0, description="weight of total-variation denoising (higher: less smoothing)")
    percentiles: Percentiles = Field((1.0, 99.0), description="intensities inside the mask mapped to 0 and 1")


class SliceSection(Section):
    """Step 2."""

    image_size: tuple[PositiveInt, PositiveInt] = Field(description="rows and columns of a slice, pixels")
    pixel_size: PositiveFloat | None = Field(None, description="in-plane resampling, in the affine's unit; null: keep")
    min_foreground: Share = Field(0.05, description="slices with a smaller share of foreground pixels are left out")
    percentiles: Percentiles = Field(
        (1.0, 99.0), json_schema_extra=ADDED, description="as in constraint_maps, for configs without that section"
    )


class NetworkSection(Section):
    """The U-Net."""

    filters: list[PositiveInt] = Field([16, 32, 64, 128, 128, 128], min_length=2, description="filters per level")
    rank: Literal[2, 3] = Field(
        2, json_schema_extra=ADDED, description="2: slices; 3: volumes, which the network sees in crops"
    )
    remat: bool = Field(
        False, json_schema_extra=ADDED, description="compute activations twice instead of keeping them: memory for time"
    )


class CropSection(Section):
    """Crops of volumes, or of slices: for networks of rank 3, and for synthesis."""

    size: list[PositiveInt] = Field(
        min_length=2, max_length=3, description="rows, columns and, with network.rank 3, slices; pixels as packed"
    )
    min_foreground: Share = Field(0.25, description="crops with a smaller share of foreground are drawn again")
    validation: PositiveInt = Field(4, description="crops of each validation subject, drawn once")


class TrainingSection(Section):
    """How one network is trained."""

    epochs: PositiveInt = Field(description="epochs in all")
    steps_per_epoch: PositiveInt | None = Field(None, description="null: as many as cover the training slices once")
    batch_size: PositiveInt = Field(description="slices per step")
    learning_rate: PositiveFloat = Field(description="of Adam, at the start")
    plateau_epochs: PositiveInt = Field(10, description="epochs without improvement that halve the learning rate")
    mixed_precision: bool = Field(False, description="16-bit arithmetic in the network; losses stay in float32")
    schedule: Literal["plateau", "cosine", "poly"] = Field(
        "plateau",
        json_schema_extra=ADDED,
        description="plateau: halved where plateau_epochs say so; cosine: falls to 0; poly: (1 - t)^0.9, as in nnU-Net",
    )
    warm_up: Share = Field(
        0.0, json_schema_extra=ADDED, description="share of the epochs in which the rate rises linearly"
    )
    keep: Literal["best", "last"] = Field(
        "best", json_schema_extra=ADDED, description="weights of the lowest validation loss, or of the last epoch"
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
        """Whether validation subjects choose weights or learning rates."""
        return self.keep == "best" or self.schedule == "plateau"


class FinetuningTrainingSection(TrainingSection):
    """How one network is finetuned: as in pretraining, and how fast what is pretrained changes."""

    head_first: Share = Field(
        0.0,
        json_schema_extra=ADDED,
        description="share of the epochs, the first ones, in which only what is not pretrained is trained",
    )
    head_learning_rate: PositiveFloat | None = Field(
        None, json_schema_extra=ADDED, description="rate of these epochs; null: learning_rate"
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        json_schema_extra=ADDED,
        description="factor of the rate from level to level, from the output back to the stem; 1: the same everywhere",
    )

    @model_validator(mode="after")
    def _head_rate_has_a_phase(self):
        if self.head_learning_rate is not None and not self.head_first:
            raise ValueError("head_learning_rate: has no effect without head_first; set both, or take it out")
        return self


class EvaluationSection(Section):
    """Step 5."""

    surface_tolerance_mm: PositiveFloat = Field(2.0, description="tolerance of the surface Dice")
    regions: dict[Name, list[Name]] = Field(
        {},
        json_schema_extra=ADDED,
        description="name: classes of data.labels that it unites; scored in place of the classes, and may overlap",
    )

    @model_validator(mode="after")
    def _regions_unite_classes(self):
        for name, members in self.regions.items():
            if not members or len(set(members)) < len(members):
                raise ValueError(f"regions.{name}: {members} must name at least one class, and each once")
        return self
