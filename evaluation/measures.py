"""What is measured: how a measure is written, which way it is better, and of what part of a volume it is taken."""

import dataclasses
from typing import Any

MASK, WHOLE = "mask", "whole volume"
REGIONS = {MASK: "_mask", WHOLE: ""}  # region: what its columns in metrics.json end with


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure as tables and figures show it.

    Attributes:
        name: Column of the results, for synthesis without the ending of a region.
        title: Name with unit.
        better: "higher" or "lower".
        digits: Decimal places in tables.
        subjects: What the N subjects that a network saw are called.
        panel: Title of a panel of figures, with {contrasts} and {label}.
    """

    name: str
    title: str
    better: str = "higher"
    digits: int = 3
    subjects: str = "annotated"
    panel: str = "{contrasts}: {label}"

    def column(self, region):
        """Column of the results that holds this measure of a region."""
        return self.name + REGIONS[region]


DICE = Measure("dice", "Dice (0 to 1)")
OF_SYNTHESIS: dict[str, Any] = {"subjects": "finetuning", "panel": "{label} from {contrasts}"}
SYNTHESIS_MEASURES = (
    Measure("ssim", "SSIM", **OF_SYNTHESIS),
    Measure("mse", "MSE", "lower", digits=5, **OF_SYNTHESIS),
    Measure("psnr_db", "PSNR [dB]", digits=2, **OF_SYNTHESIS),
)
