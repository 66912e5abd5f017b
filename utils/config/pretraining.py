"""The section `pretraining` of a config: its stages, and every key with type, default and meaning."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from utils.config.sections import ADDED, FileName, Name, Section, Share, TrainingSection

PositiveShare = Annotated[float, Field(gt=0, le=1)]
IN_PLACE_OF = {"patch_mm": "patch_size", "nearest_share": "nearest_patches", "anchors_share": "anchors_per_slice"}


class RegressionStage(Section):
    """Encoder and full decoder restore single pixels or whole blocks that were replaced by noise."""

    method: Literal["regression"] = Field(description="kind of stage")
    warm_start: FileName | None = Field(None, description="stage to start from, or a weights file")
    corrupted_share: float = Field(0.1, gt=0, le=1, description="share of the pixels replaced by noise")
    noise: PositiveFloat = Field(0.01, description="standard deviation of the noise, in units of the [0, 1] image")
    block_mm: PositiveFloat | None = Field(
        None,
        json_schema_extra=ADDED,
        description="edge of square blocks replaced as a whole, in the unit of slices.pixel_size; null: single pixels",
    )
    block_px: PositiveInt | None = Field(
        None, json_schema_extra=ADDED, description="the same edge in pixels; give only one of the two"
    )
    training: TrainingSection = Field(description="epochs, batch, learning rate")

    def block_edge(self, pixel_size):
        """Return the edge of a block in pixels, at least 1; None for single pixels. `block_mm` needs a pixel size."""
        return max(1, round(self.block_mm / pixel_size)) if self.block_mm else self.block_px


class GlobalStage(Section):
    """Global contrast on the encoder: SimCLR, or the anatomical contrast of Chaitanya et al. (G^D-)."""

    method: Literal["global"] = Field(description="kind of stage")
    warm_start: FileName | None = Field(None, description="stage to start from, or a weights file")
    temperature: PositiveFloat = Field(0.1, description="softmax temperature, dimensionless")
    features: PositiveInt = Field(128, description="size of the projected representation")
    crop_scale: tuple[PositiveFloat, PositiveFloat] = Field(
        (0.6, 1.0), description="smallest and largest share of the field of view that a crop keeps"
    )
    brightness: float = Field(0.3, ge=0, description="largest shift, in units of the [0, 1] image")
    contrast: Share = Field(0.3, description="largest relative change of contrast")
    n_partitions: int | None = Field(
        None,
        ge=2,
        json_schema_extra=ADDED,
        description="parts along the slice axis; slices of the same part do not repel each other; null: SimCLR",
    )
    partition_positives: bool = Field(
        False,
        json_schema_extra=ADDED,
        description="with n_partitions: slices of the same part attract each other, across volumes",
    )
    training: TrainingSection = Field(description="epochs, batch, learning rate")


class LocalStage(Section):
    """Local contrast on the decoder: regions of two intensity-augmented views (Chaitanya et al., L^R)."""

    method: Literal["local"] = Field(description="kind of stage")
    warm_start: FileName | None = Field(None, description="stage to start from, or a weights file")
    freeze_encoder: bool = Field(True, description="train the decoder only, as Chaitanya et al. do")
    decoder_levels: PositiveInt | None = Field(None, description="number of decoder levels; null: the full decoder")
    region_size: PositiveInt = Field(3, description="edge of a region, in pixels of the decoder's output")
    regions: int = Field(13, ge=2, description="number of regions drawn in each slice")
    negatives: PositiveInt = Field(
        5, description="number of other regions that each region is contrasted with, in both views"
    )
    temperature: PositiveFloat = Field(0.1, description="softmax temperature, dimensionless")
    features: PositiveInt = Field(64, description="number of features per pixel of the projected map")
    brightness: float = Field(0.3, ge=0, description="largest shift, in units of the [0, 1] image")
    contrast: Share = Field(0.3, description="largest relative change of contrast")
    training: TrainingSection = Field(description="epochs, batch, learning rate")


class ConstrainedStage(Section):
    """Constrained contrastive learning (CCL) on encoder and decoder."""

    method: Literal["constrained"] = Field(description="kind of stage")
    warm_start: FileName | None = Field(None, description="stage to start from, or a weights file")
    decoder_levels: PositiveInt | None = Field(None, description="number of decoder levels; null: the full decoder")
    patch_size: PositiveInt | None = Field(
        4, description="patch edge, in pixels of the decoder's output; null if patch_mm is given"
    )
    patch_mm: PositiveFloat | None = Field(
        None,
        json_schema_extra=ADDED,
        description="patch edge in mm, instead of patch_size; rounded to pixels that divide the image",
    )
    space: Name | None = Field(
        None,
        json_schema_extra=ADDED,
        description="contrast space of the maps: one of constraint_maps.spaces; null: constraint_maps.contrasts",
    )
    temperature: PositiveFloat = Field(0.1, description="softmax temperature, dimensionless")
    nearest_patches: PositiveInt | None = Field(
        100,
        description="number of most similar patches that an anchor is compared with; null if nearest_share is given",
    )
    nearest_share: PositiveShare | None = Field(
        None,
        json_schema_extra=ADDED,
        description="instead of nearest_patches: share of the slice's foreground patches (authors: about 0.06)",
    )
    anchors_per_slice: PositiveInt | None = Field(
        20, description="number of anchors, drawn from the foreground in every epoch; null if anchors_share is given"
    )
    anchors_share: PositiveShare | None = Field(
        None,
        json_schema_extra=ADDED,
        description="instead of anchors_per_slice: share of the slice's foreground patches",
    )
    comparison: Literal["pairwise", "setwise"] = Field(
        "pairwise", description="contrast positives one by one, or jointly"
    )
    anchor_is_positive: bool = Field(True, description="count the anchor among its own positives")
    background_patches: bool = Field(
        True, json_schema_extra=ADDED, description="also compare anchors with background patches"
    )
    positive_within_mm: PositiveFloat | None = Field(
        None,
        json_schema_extra=ADDED,
        description="patches of the anchor's class farther away are neither positives nor negatives; null: no limit",
    )
    features: PositiveInt = Field(64, description="number of features of a patch's representation")
    patch_representation: Literal["mean", "concatenation"] = Field(
        "mean",
        json_schema_extra=ADDED,
        description="how the features of a patch's pixels are combined; authors' code: concatenation",
    )
    head_normalization: bool = Field(
        False,
        json_schema_extra=ADDED,
        description="group normalisation between the two convolutions of the projection head, which then have no bias",
    )
    training: TrainingSection = Field(description="epochs, batch, learning rate")

    @model_validator(mode="before")
    @classmethod
    def _one_of_two_keys(cls, values):
        """Set a number to null if a length or share is given instead, so that only one of them applies."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for key, number in IN_PLACE_OF.items():
            is_given = values.get(key) is not None
            if is_given and values.get(number) is not None:
                raise ValueError(f"{key}: stands in place of {number}; set {number} to null, or remove one of them")
            if not is_given and number in values and values[number] is None:
                raise ValueError(f"{number}: null leaves the choice to {key}; give that, or a number")
            values |= {number: None} if is_given else {}
        return values


Stage = Annotated[RegressionStage | GlobalStage | LocalStage | ConstrainedStage, Field(discriminator="method")]


class PretrainingSection(Section):
    """Pretraining (step 3): stages run in order; the name of a stage is the name of the initialisation it provides."""

    contrasts: list[Name] = Field(min_length=1, description="input contrasts of the network")
    contrasts_as: Literal["channels", "samples"] = Field(
        "channels",
        json_schema_extra=ADDED,
        description="channels: all contrasts form one input; samples: one input channel sees each contrast in turn",
    )
    stages: dict[Name, Stage] = Field(min_length=1, description="stage name: its settings, in the order of execution")

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
    """Yield contradictions between the keys of one stage."""
    if stage.method == "global" and not stage.crop_scale[0] <= stage.crop_scale[1]:
        yield f"crop_scale: {list(stage.crop_scale)} must ascend"
    if stage.method == "global" and stage.n_partitions and stage.training.batch_size % stage.n_partitions:
        yield (
            f"training.batch_size: {stage.training.batch_size} must be a multiple of n_partitions "
            f"({stage.n_partitions}), because a batch holds one slice of each part of each volume"
        )
    if stage.method == "global" and stage.partition_positives and not stage.n_partitions:
        yield "partition_positives: needs n_partitions, the number of parts of a volume (4 in the method's code)"
    if stage.method == "regression" and stage.block_mm and stage.block_px:
        yield "block_px: give block_mm or block_px, not both"
    if stage.method == "local" and stage.freeze_encoder and not stage.warm_start:
        yield "freeze_encoder: the encoder would stay random; name a stage to start from in warm_start, or set it false"


def mistakes_of_blocks(stages, pixel_size, image_size):
    """Yield mistakes in the blocks of masked stages, given the pixel size (None: unknown) and the image size."""
    for name, stage in stages.items():
        where = f"pretraining.stages.{name}"
        if stage.method == "regression" and stage.block_mm and not pixel_size:
            yield (
                f"{where}.block_mm: needs slices.pixel_size, because voxels that are kept as they are may differ from "
                "subject to subject; set it, or give block_px"
            )
        elif stage.method == "regression" and (stage.block_edge(pixel_size) or 0) >= min(image_size):
            key = "block_mm" if stage.block_mm else "block_px"
            yield (
                f"{where}.{key}: a block of {stage.block_edge(pixel_size)} pixels would hide a whole image of "
                f"{list(image_size)}; give a smaller one"
            )
