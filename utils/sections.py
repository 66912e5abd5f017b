"""The sections of a config: every key, its type, default and meaning."""

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
    """How many labelled subjects go where, drawn by the seed; subjects without a label train as well."""

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


class TrainingSection(Section):
    """How one network is trained."""

    epochs: PositiveInt = Field(description="epochs in all")
    steps_per_epoch: PositiveInt | None = Field(None, description="null: as many as cover the training slices once")
    batch_size: PositiveInt = Field(description="slices per step")
    learning_rate: PositiveFloat = Field(description="of Adam, at the start")
    plateau_epochs: PositiveInt = Field(10, description="epochs without improvement that halve the learning rate")
    mixed_precision: bool = Field(False, description="16-bit arithmetic in the network; losses stay in float32")


class RegressionStage(Section):
    """Restoring pixels that noise has replaced, with encoder and full decoder."""

    method: Literal["regression"] = Field(description="what kind of stage this is")
    warm_start: str | None = Field(None, description="stage of this config, or a weights file")
    corrupted_share: float = Field(0.1, gt=0, le=1, description="share of the pixels replaced by noise")
    noise: PositiveFloat = Field(0.01, description="standard deviation of that noise, in units of the [0, 1] image")
    training: TrainingSection = Field(description="epochs, batch, learning rate")


class GlobalStage(Section):
    """Global contrast on the encoder: SimCLR, or the anatomical contrast of Chaitanya et al. (G^D-)."""

    method: Literal["global"] = Field(description="what kind of stage this is")
    warm_start: str | None = Field(None, description="stage of this config, or a weights file")
    temperature: PositiveFloat = Field(0.1, description="softmax temperature, dimensionless")
    features: PositiveInt = Field(128, description="size of the projected representation")
    crop_scale: tuple[PositiveFloat, PositiveFloat] = Field((0.6, 1.0), description="share of the field of view kept")
    brightness: float = Field(0.3, ge=0, description="largest shift, in units of the [0, 1] image")
    contrast: Share = Field(0.3, description="largest relative change of contrast")
    n_partitions: int | None = Field(
        None,
        ge=2,
        json_schema_extra=ADDED,
        description="parts along the slice axis; slices of the same part never repel each other; null: SimCLR",
    )
    training: TrainingSection = Field(description="epochs, batch, learning rate")


class LocalStage(Section):
    """Local contrast on the decoder: regions of two intensity-augmented views (Chaitanya et al., L^R)."""

    method: Literal["local"] = Field(description="what kind of stage this is")
    warm_start: str | None = Field(None, description="stage of this config, or a weights file")
    freeze_encoder: bool = Field(True, description="train the decoder only, as Chaitanya et al. do")
    decoder_levels: PositiveInt | None = Field(None, description="decoder levels trained; null: the full decoder")
    region_size: PositiveInt = Field(3, description="edge of a region, pixels of the decoder's output")
    regions: int = Field(13, ge=2, description="regions drawn in each slice")
    negatives: PositiveInt = Field(5, description="other regions that each is contrasted with, in both views")
    temperature: PositiveFloat = Field(0.1, description="softmax temperature, dimensionless")
    features: PositiveInt = Field(64, description="features per pixel of the projected map")
    brightness: float = Field(0.3, ge=0, description="largest shift, in units of the [0, 1] image")
    contrast: Share = Field(0.3, description="largest relative change of contrast")
    training: TrainingSection = Field(description="epochs, batch, learning rate")


class ConstrainedStage(Section):
    """Constrained contrastive learning (CCL) on encoder and decoder."""

    method: Literal["constrained"] = Field(description="what kind of stage this is")
    warm_start: str | None = Field(None, description="stage of this config, or a weights file")
    decoder_levels: PositiveInt | None = Field(None, description="decoder levels trained; null: the full decoder")
    patch_size: PositiveInt = Field(4, description="patch edge, in pixels of the decoder's output")
    space: Name | None = Field(
        None, json_schema_extra=ADDED, description="one of constraint_maps.spaces; null: constraint_maps.contrasts"
    )
    temperature: PositiveFloat = Field(0.1, description="softmax temperature, dimensionless")
    nearest_patches: PositiveInt = Field(100, description="patches of the slice that an anchor is compared with")
    anchors_per_slice: PositiveInt = Field(20, description="anchors, drawn from the foreground in every epoch")
    comparison: Literal["pairwise", "setwise"] = Field("pairwise", description="positives one by one, or together")
    anchor_is_positive: bool = Field(True, description="count the anchor among its own positives")
    background_patches: bool = Field(
        True, json_schema_extra=ADDED, description="compare anchors with patches of the background as well"
    )
    features: PositiveInt = Field(64, description="size of a patch's representation")
    training: TrainingSection = Field(description="epochs, batch, learning rate")


Stage = Annotated[RegressionStage | GlobalStage | LocalStage | ConstrainedStage, Field(discriminator="method")]


class PretrainingSection(Section):
    """Step 3: stages run in order; a stage's name is the name of the initialisation it gives."""

    contrasts: list[Name] = Field(min_length=1, description="input contrasts of the network")
    contrasts_as: Literal["channels", "samples"] = Field(
        "channels",
        json_schema_extra=ADDED,
        description="one input with all contrasts as channels, or one channel that sees each contrast in turn",
    )
    stages: dict[Name, Stage] = Field(min_length=1, description="stage name: its settings, in the order of running")

    @model_validator(mode="after")
    def _stages_are_in_order(self):
        if "random" in self.stages:
            raise ValueError("stages: 'random' is the name of the initialisation without pretraining; choose another")
        earlier = []
        for name, stage in self.stages.items():
            source = stage.warm_start
            if source in self.stages and source not in earlier:
                raise ValueError(f"stages.{name}.warm_start: '{source}' must come before '{name}'")
            if source and source not in self.stages and not source.endswith(".npz"):
                known = ", ".join(earlier) or "none before this one"
                raise ValueError(f"stages.{name}.warm_start: '{source}' is neither a stage ({known}) nor a .npz file")
            for mistake in _mistakes_of_stage(stage):
                raise ValueError(f"stages.{name}.{mistake}")
            earlier.append(name)
        return self


def _mistakes_of_stage(stage):
    """What two keys of one stage say against each other."""
    if stage.method == "global" and not stage.crop_scale[0] <= stage.crop_scale[1]:
        yield f"crop_scale: {list(stage.crop_scale)} must ascend"
    if stage.method == "global" and stage.n_partitions and stage.training.batch_size % stage.n_partitions:
        yield (
            f"training.batch_size: {stage.training.batch_size} must be a multiple of n_partitions "
            f"({stage.n_partitions}), because a batch holds one slice of each part of each volume"
        )
    if stage.method == "local" and stage.freeze_encoder and not stage.warm_start:
        yield "freeze_encoder: the encoder would stay random; name a stage to start from in warm_start, or set it false"


class LossSection(Section):
    """Focal Tversky or Dice loss, with class-balanced cross-entropy if wanted."""

    name: Literal["focal_tversky", "dice"] = Field(
        "focal_tversky", json_schema_extra=ADDED, description="dice: the next three keys have no effect"
    )
    false_positive_weight: PositiveFloat = Field(0.3, description="weight of false positives in the Tversky index")
    false_negative_weight: PositiveFloat = Field(0.7, description="weight of false negatives")
    focus: PositiveFloat = Field(4 / 3, description="exponent is 1 / focus")
    cross_entropy_weight: float = Field(
        0.0, ge=0, description="weight of class-balanced cross-entropy added to it; papers: 0"
    )
    class_weights: dict[Name, PositiveFloat] | None = Field(None, description="class name: weight; null: all equal")


class AugmentationSection(Section):
    """Largest random changes of a training slice; one displacement field for image and label."""

    translation: Share = Field(0.1, description="share of the image size")
    rotation_degrees: float = Field(15.0, ge=0, le=180, description="either way")
    scale: Share = Field(0.15, description="relative enlargement or shrinkage")
    elastic_px: float = Field(2.0, ge=0, description="standard deviation of the elastic displacement, pixels")
    elastic_grid: PositiveInt = Field(8, description="edge of the coarse grid of displacements, pixels")
    brightness: float = Field(0.1, ge=0, description="largest shift, in units of the [0, 1] image")
    contrast: Share = Field(0.2, description="largest relative change of contrast")


class FinetuningSection(Section):
    """Step 4: the grid contrasts x init x N x repeat."""

    contrasts: dict[Name, list[Name]] = Field(min_length=1, description="name of an input set: its contrasts")
    inits: list[Name] = Field(["random", "constrained"], min_length=1, description="random, or stages of pretraining")
    subjects_n: list[PositiveInt] = Field(min_length=1, description="numbers of annotated subjects")
    repeats: PositiveInt = Field(3, description="draws of annotated subjects")
    loss: LossSection = Field(LossSection(), description="focal Tversky loss")
    augmentation: AugmentationSection = Field(AugmentationSection(), description="random changes of training slices")
    training: TrainingSection = Field(description="epochs, batch, learning rate")
    evaluate_every: PositiveInt = Field(1, description="epochs between two looks at the validation set")

    @model_validator(mode="after")
    def _validation_is_looked_at(self):
        if self.evaluate_every > self.training.epochs:
            raise ValueError(f"evaluate_every: {self.evaluate_every} is more than training.epochs")
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
