"""Each setting of a loss has one default, the same in the config and in the loss."""

import inspect

import pytest

from losses.constrained_contrastive import constrained_contrastive_loss
from losses.global_contrastive import anatomical_contrastive_loss, simclr_loss
from losses.local_contrastive import local_contrastive_loss
from losses.segmentation import focal_tversky_loss, segmentation_loss
from losses.synthesis import synthesis_loss
from utils.config.finetuning import LossSection, SynthesisLossSection
from utils.config.pretraining import ConstrainedStage, GlobalStage, LocalStage

SETTINGS = [
    (LossSection, segmentation_loss, {"name", "class_weights", "cross_entropy", "cross_entropy_weight"}),
    (LossSection, focal_tversky_loss, {"class_weights", "false_positive_weight", "false_negative_weight", "focus"}),
    (SynthesisLossSection, synthesis_loss, {"name", "ssim_weight"}),
    (GlobalStage, simclr_loss, {"temperature"}),
    (GlobalStage, anatomical_contrastive_loss, {"temperature"}),
    (LocalStage, local_contrastive_loss, {"temperature", "region_size", "regions", "negatives"}),
    (
        ConstrainedStage,
        constrained_contrastive_loss,
        {"temperature", "nearest_patches", "comparison", "anchor_is_positive"},
    ),
]


@pytest.mark.parametrize(("section", "loss", "names"), SETTINGS)
def test_section_and_loss_agree(section, loss, names):
    parameters, fields = inspect.signature(loss).parameters, section.model_fields
    assert parameters.keys() & fields.keys() == names
    assert {name: parameters[name].default for name in names} == {name: fields[name].default for name in names}
