"""The measures of the two tasks of step 4: the only place that describes a measure to tables, figures and checks.

A new measure is one entry below and the line that computes it (`metrics.py`, `synthesis_metrics.py`).
"""

import dataclasses
import math

MASK, WHOLE = "mask", "whole volume"
REGIONS = {MASK: "_mask", WHOLE: ""}  # region: suffix of the keys of its measures
CELL = ["contrasts", "init", "n_annotated"]  # columns of the scores
OF_A_CELL = ("annotated_available", "duration_s", "compile_s", "n_selecting")
SETTINGS = ("surface_tolerance_mm", "lesion_overlap")  # settings of a study that captions state
ABSENT = "NaN: scores without a value (label absent in reference and prediction), left out of the means."


@dataclasses.dataclass(frozen=True)
class Measure:
    """One measure of a prediction against its reference.

    Attributes:
        key: Key in the rows of metrics.json and column of the scores.
        name: Name in tables and figures.
        unit: Unit, or "" for a number without one.
        better: "higher", "lower" or "nearer to 0"; "" for a quantity that does not rate a prediction.
        digits: Decimal places in tables.
        low: Smallest possible value.
        high: Largest possible value.
        needs_voxel_size: Whether it is undefined if the voxel size is unknown.
        is_optional: Whether a row of metrics.json may lack it, such as one from before the measure was added.
        difference_of: Keys of the two columns whose difference it is; such a measure is not in metrics.json.
        region: Part of the volume that it covers, a key of `REGIONS`; "" for measures of segmentation.
        counted_with: Key of a number present only in rows in which it was measured; other rows do not count as NaN.
        opening: First sentence of its table's caption, with the placeholders of `SETTINGS`.
        without_value: Sentence of the caption on undefined values, or on how signs average.
        ending: Sentence of the caption on the score of a prediction without the label.
    """

    key: str
    name: str
    unit: str = ""
    better: str = "higher"
    digits: int = 3
    low: float = 0.0
    high: float = math.inf
    needs_voxel_size: bool = False
    is_optional: bool = False
    difference_of: tuple[str, str] | None = None
    region: str = ""
    counted_with: str = ""
    opening: str = ""
    without_value: str = ABSENT
    ending: str = ""

    @property
    def title(self) -> str:
        """Name with unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name

    @property
    def axis(self) -> str:
        """Name with unit or range, for axes."""
        return f"{self.title} (0 to 1)" if (self.low, self.high) == (0, 1) else self.title


DICE = Measure("dice", "Dice", high=1.0)
HD95 = Measure(
    "hd95_mm", "HD95", "mm", "lower", digits=1, needs_voxel_size=True,
    ending="A label absent in one of the two counts as the image diagonal.",
)  # fmt: skip
SURFACE_DICE = Measure(
    "surface_dice", "Surface Dice", high=1.0, needs_voxel_size=True, opening="Tolerance {surface_tolerance_mm:g} mm."
)
VOLUME = Measure("volume_ml", "Volume", "mL", better="", digits=1, needs_voxel_size=True)
REFERENCE_VOLUME = dataclasses.replace(VOLUME, key="volume_ml_reference", name="Reference volume")
VOLUME_ERROR = Measure(
    "volume_error_ml", "Volume error", "mL", "nearer to 0", digits=1, low=-math.inf, needs_voxel_size=True,
    difference_of=(VOLUME.key, REFERENCE_VOLUME.key),
    without_value="Segmented minus reference volume, with its sign: errors of opposite sign cancel in the means.",
)  # fmt: skip
LESIONS_SAY = (
    "Lesions are connected components (voxels that touch by faces, edges or corners). A predicted and a reference "
    "lesion are paired if their intersection over union is at least {lesion_overlap:g}, one to one, the largest first."
)
LESIONS = Measure("lesions_reference", "Reference lesions", "per subject", better="", digits=1, is_optional=True)
DETECTED_LESIONS = dataclasses.replace(LESIONS, key="lesions_detected", name="Detected lesions")
LESION_F1 = Measure(
    "lesion_f1", "Lesion F1", high=1.0, is_optional=True, counted_with=LESIONS.key, opening=LESIONS_SAY,
    without_value="NaN: scores without a value (no lesion in reference and prediction), left out of the means.",
    ending="With lesions in one of the two only, F1 is 0.",
)  # fmt: skip
LESION_SENSITIVITY = dataclasses.replace(
    LESION_F1, key="lesion_sensitivity", name="Lesion sensitivity", ending="",
    without_value="Share of the reference lesions that are detected. NaN: no reference lesion, left out of the means.",
)  # fmt: skip
FALSE_LESIONS = dataclasses.replace(
    LESION_F1, key="lesions_false_positive", name="False-positive lesions", unit="per subject", better="lower",
    digits=2, high=math.inf, without_value="Predicted lesions without a partner in the reference.", ending="",
)  # fmt: skip
LESION_MEASURES = (LESION_F1, LESION_SENSITIVITY, FALSE_LESIONS, LESIONS, DETECTED_LESIONS)
SEGMENTATION_MEASURES = (DICE, HD95, SURFACE_DICE, VOLUME, REFERENCE_VOLUME, VOLUME_ERROR, *LESION_MEASURES)

SSIM = Measure("ssim", "SSIM", low=-1.0, high=1.0)  # of opposite images it is negative
MSE = Measure("mse", "MSE", better="lower", digits=5)
PSNR = Measure("psnr_db", "PSNR", "dB", digits=2, low=-math.inf)
SYNTHESIS_MEASURES = tuple(
    dataclasses.replace(measure, key=measure.key + ending, region=region)
    for region, ending in REGIONS.items()
    for measure in (SSIM, MSE, PSNR)
)
MEASURES = {measure.key: measure for measure in (*SEGMENTATION_MEASURES, *SYNTHESIS_MEASURES)}


def measures_in(region) -> list[Measure]:
    """List the measures of synthesis for a region."""
    return [measure for measure in SYNTHESIS_MEASURES if measure.region == region]


@dataclasses.dataclass(frozen=True)
class Task:
    """One of the two tasks of step 4: where and how its scores are stored and named.

    Attributes:
        folder: Folder below the work dir or a fold.
        cells: Pattern of the folders of cells below it.
        script: The script that makes the cells.
        labels: Key of metrics.json that lists the labels in the order of the config.
        measures: Measures of its predictions.
        references: Numbers of a row that describe the reference: the same in all cells for one subject and label.
        others: Further numbers of a row.
        words: Further text that metrics.json records for a whole cell.
        inputs: Key of metrics.json that names the input of the networks, and the type of its value.
        of_a_cell: Numbers that metrics.json may record for a whole cell.
        untested: Keys of metrics.json that list subjects who must not be scored.
        subjects: Name for the N subjects that a network saw.
        panel: Title of a panel of figures, with {contrasts} and {label}.
    """

    folder: str
    cells: str
    script: str
    labels: str
    measures: tuple[Measure, ...]
    references: tuple[str, ...]
    others: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    inputs: tuple = (("contrasts", str),)
    of_a_cell: tuple[str, ...] = OF_A_CELL
    untested: tuple[str, ...] = ("train_subjects", "validation_subjects")
    subjects: str = "annotated"
    panel: str = "{contrasts}: {label}"

    @property
    def numbers(self) -> list[str]:
        """Numbers that every row of metrics.json has."""
        required = [one.key for one in self.measures if not one.difference_of and not one.is_optional]
        return [*required, *self.others]


SEGMENTATION = Task(
    "finetuning", "*/*/n*/r*", "finetune_segmentation.py", "labels", SEGMENTATION_MEASURES,
    ("volume_ml_reference", "voxels_reference", LESIONS.key),  # the second if the voxel size is unknown
)  # fmt: skip
SYNTHESIS = Task(
    "synthesis", "*/n*/r*", "finetune_synthesis.py", "targets", SYNTHESIS_MEASURES, ("intensity_low", "intensity_high"),
    others=("data_range", "intensity_low", "intensity_high"), words=("mask",), inputs=(("inputs", list),),
    subjects="finetuning", panel="{label} from {contrasts}",
)  # fmt: skip


def add_differences(frame, task):
    """Add the columns that are differences of others to a DataFrame of scores."""
    for measure in task.measures:
        if measure.difference_of:
            minuend, subtrahend = measure.difference_of
            frame[measure.key] = frame[minuend] - frame[subtrahend]


def without_unused(frame, task):
    """Return a DataFrame of scores without the optional measures that no row has."""
    unused = [measure.key for measure in task.measures if measure.is_optional and frame[measure.key].isna().all()]
    return frame.drop(columns=unused)
