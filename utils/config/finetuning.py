"""The sections `finetuning` and `synthesis` of a config: the grids of step 4."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from utils.config.augmentation import AugmentationSection, SynthesisAugmentationSection
from utils.config.sections import ADDED, FinetuningTrainingSection, Name, Section
from utils.config.trials import refuse_wrong_trials, with_changes


class LossSection(Section):
    """Focal Tversky or Dice loss, optionally with cross-entropy, or cross-entropy alone."""

    name: Literal["focal_tversky", "dice", "cross_entropy"] = Field(
        "focal_tversky",
        json_schema_extra=ADDED,
        description="for dice and cross_entropy, the next three keys have no effect",
    )
    false_positive_weight: PositiveFloat = Field(0.3, description="weight of false positives in the Tversky index")
    false_negative_weight: PositiveFloat = Field(0.7, description="weight of false negatives")
    focus: PositiveFloat = Field(4 / 3, description="the exponent is 1 / focus")
    cross_entropy_weight: float = Field(0.0, ge=0, description="weight of the cross-entropy that is added; papers: 0")
    cross_entropy: Literal["balanced", "plain"] = Field(
        "balanced",
        json_schema_extra=ADDED,
        description="balanced: all classes have equal weight; plain: all pixels have equal weight",
    )
    class_weights: dict[Name, PositiveFloat] | None = Field(
        None, description="class name: its weight in the loss; null: all equal"
    )

    @model_validator(mode="after")
    def _cross_entropy_counts_once(self):
        if self.name == "cross_entropy" and self.cross_entropy_weight:
            raise ValueError(
                f"cross_entropy_weight: {self.cross_entropy_weight:g} adds cross-entropy to itself; remove it, or "
                "choose name: dice or focal_tversky"
            )
        if self.cross_entropy == "plain" and self.name != "cross_entropy" and not self.cross_entropy_weight:
            raise ValueError(
                "cross_entropy: plain has no effect without a cross_entropy_weight above 0 or name: cross_entropy"
            )
        return self


class FinetuningSection(Section):
    """Step 4: the grid contrasts x init x N x repeat."""

    contrasts: dict[Name, list[Name]] = Field(min_length=1, description="name of an input set: its contrasts")
    inits: list[Name] = Field(
        ["random", "constrained"], min_length=1, description="initialisations: random, or pretraining stages"
    )
    subjects_n: list[PositiveInt] = Field(min_length=1, description="numbers of annotated subjects")
    repeats: PositiveInt = Field(3, description="number of draws of annotated subjects")
    loss: LossSection = Field(LossSection(), description="focal Tversky loss")
    augmentation: AugmentationSection = Field(AugmentationSection(), description="random changes of training slices")
    training: FinetuningTrainingSection = Field(description="epochs, batch, learning rate")
    evaluate_every: PositiveInt = Field(1, description="number of epochs between two evaluations on the validation set")
    head_block: bool = Field(
        False,
        json_schema_extra=ADDED,
        description="adds a 3 x 3 convolution with normalisation and ReLU before the last one (authors' code)",
    )
    fresh_levels: NonNegativeInt = Field(
        0,
        json_schema_extra=ADDED,
        description="number of last decoder levels that start from random weights in every init",
    )
    trials: dict[Name, dict[str, Any]] = Field(
        {},
        json_schema_extra=ADDED,
        description="settings to compare; name: {key below finetuning: value}, such as {training.epochs: 100}",
    )
    chosen: dict[Name, Name] = Field(
        {},
        json_schema_extra=ADDED,
        description="init: the trial whose settings it uses; other inits use the section as it is",
    )

    @model_validator(mode="after")
    def _validation_is_looked_at(self):
        if self.evaluate_every > self.training.epochs:
            raise ValueError(f"evaluate_every: {self.evaluate_every} is more than training.epochs")
        return self

    @model_validator(mode="after")
    def _trials_are_sound(self):
        refuse_wrong_trials(self)
        return self

    def settings_of(self, init, trial=None):
        """Return the settings of a cell: those of the trial, of the trial chosen for the init, or of this section.

        Args:
            init: Its initialisation.
            trial: Name of a trial, or None.

        Returns:
            A `FinetuningSection` without trials.
        """
        trial = trial or self.chosen.get(init)
        return with_changes(self, self.trials[trial] if trial else {})


class SynthesisLossSection(Section):
    """Loss of synthesised contrasts; the poster does not name one."""

    name: Literal["l1", "mse", "l1_ssim"] = Field("l1", description="l1_ssim: L1 + ssim_weight (1 - SSIM)")
    ssim_weight: PositiveFloat = Field(1.0, description="weight of 1 - SSIM, for l1_ssim only")


class SynthesisSection(Section):
    """Step 4 for contrast synthesis: the grid init x N x repeat."""

    inputs: list[Name] = Field(min_length=1, description="contrasts that the network sees")
    targets: list[Name] = Field(min_length=1, description="contrasts that it synthesises, all at once")
    inits: list[Name] = Field(
        ["random", "constrained"], min_length=1, description="initialisations: random, or pretraining stages"
    )
    subjects_n: list[PositiveInt] = Field(min_length=1, description="numbers of subjects with all contrasts")
    repeats: PositiveInt = Field(3, description="number of draws of these subjects")
    loss: SynthesisLossSection = Field(SynthesisLossSection(), description="L1, mean squared error, or L1 and SSIM")
    augmentation: SynthesisAugmentationSection = Field(
        SynthesisAugmentationSection(), description="random changes of training crops"
    )
    training: FinetuningTrainingSection = Field(description="epochs, batch, learning rate")
    evaluate_every: PositiveInt = Field(
        1, description="number of epochs between two evaluations on the validation crops"
    )
    fresh_levels: NonNegativeInt = Field(
        0,
        json_schema_extra=ADDED,
        description="number of last decoder levels that start from random weights in every init",
    )
    overlap: float = Field(
        0.5, ge=0, lt=1, description="smallest overlap of neighbouring windows, as a share of a window"
    )

    @model_validator(mode="after")
    def _validation_is_looked_at(self):
        if self.evaluate_every > self.training.epochs:
            raise ValueError(f"evaluate_every: {self.evaluate_every} is more than training.epochs")
        return self
