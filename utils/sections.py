"""The sections of a config that several steps share: every key, its type, default and meaning.

Those of single steps are in `sections_pretraining.py` and `sections_finetuning.py`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="letters, digits, - and _")]
Share = Annotated[float, Field(ge=0, le=1)]


def _ascending(percentiles):
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"{list(percentiles)} must ascend within 0 to 100")
    return percentiles


Percentiles = Annotated[tuple[float, float], AfterValidator(_ascending)]
ADDED = {"added": True}  # marks a key that came later: while it has its default, hashes are those of before


class Section(BaseModel):
    """One block of a config: typed, frozen, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _yes_and_no_are_no_numbers(cls, values):
        """YAML reads `yes` and `no` as true and false, which Python would take for 1 and 0."""
        fields = cls.model_fields
        for key, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and key in fields and fields[key].annotation is not bool:
                raise ValueError(f"{key}: found {'yes' if value else 'no'} (true or false), expected another value")
        return values


class SeriesFile(Section):
    """A contrast series in one 4D file; its channels are called `<name>_1`, `<name>_2`, ..."""

    file: str = Field(description="path below data.root, with {subject}")
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


class DataSection(Section):
    """Where the scans lie and what they are called."""

    root: Path = Field(description="folder of the dataset")
    contrasts: dict[Name, str | SeriesFile] = Field(min_length=1, description="contrast name: path with {subject}")
    label: str | None = Field(None, description="path of the label map, with {subject}")
    labels: dict[Name, list[int]] = Field(default_factory=dict, description="class name: its values in the label map")
    ignored_label_values: list[int] = Field(default_factory=list, description="label values that mean background")
    mask: str | None = Field(None, description="path of a foreground mask, with {subject}; null: found in the images")
    voxel_size_known: bool = Field(True, description="false when the affine is nominal: then no mm and no mL")
    splits: str | SplitSizes | SplitLists | CrossValidation = Field(
        description="file below root, sizes, lists of names, or folds"
    )
    resident: Literal["auto", "always", "never"] = Field(
        "auto", description="keep slices on the device in training; never: read each batch; auto: if they fit"
    )
    simulated: bool = Field(False, description="true for simulated scans; every table and figure says so")

    @model_validator(mode="after")
    def _labels_have_a_file(self):
        if bool(self.label) != bool(self.labels):
            raise ValueError("label and labels go together: give both or neither")
        values = [value for members in self.labels.values() for value in members] + self.ignored_label_values
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise ValueError(f"labels: value {repeated[0]} is named twice; a voxel has one class")
        if 0 in values or "background" in self.labels or not all(self.labels.values()):
            raise ValueError("labels: every class needs values other than 0, which is background and not named")
        return self


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
