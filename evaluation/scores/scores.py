"""The scores of a task of step 4: read from a work dir or a table, averaged, with everything their report needs.

Averages are always taken in this order: over the repeats of a subject (draws of annotated subjects), then its classes,
then subjects. The spread in every table and figure is therefore that between test subjects. NaN scores (a class absent
from both reference and prediction) are left out of averages and counted.
"""

import dataclasses
import functools
import itertools
import math
import typing
from pathlib import Path

import numpy as np

from evaluation.scores import cell_checks
from evaluation.scores.dead_classes import about_validation
from evaluation.scores.external import about_external
from evaluation.scores.measures import (
    CELL,
    DICE,
    OF_A_CELL,
    SEGMENTATION,
    Measure,
    Task,
    add_differences,
    without_unused,
)
from evaluation.statistics import CONFIDENCE
from utils.checks import InputError
from utils.runs import read_json
from utils.work_dir import METRICS

if typing.TYPE_CHECKING:
    import pandas

MEAN = "mean over labels"


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """All scores of one task, as passed from metrics.json to tables, figures and page.

    Attributes:
        frame: One row per cell, test subject and label: `split`, `contrasts`, `init`, `n_annotated`, `repeat`,
            `subject`, `label`, the measures as floats (NaN if undefined), `config_hash` and `folder` (a `Path`); and,
            repeated in each row of a cell and NaN if not recorded: `annotated_available` (number of annotated training
            subjects), `duration_s`, `compile_s` (the part of it spent on compiling), and the columns of
            `dead_classes.about_validation`. For synthesis, `label` is the target contrast, `contrasts` joins the
            inputs, `mask` says where it came from, and an infinite PSNR (the MSE is 0) is NaN. If there are cells of
            tools outside this suite, their `init` ends in `external.ENDING`, and `external` says what is known of
            their training.
        task: `SEGMENTATION` or `SYNTHESIS`.
        work_dir: Folder of the cells' folders; None if only the scores are available.
        inits: Initialisations in the order of rows and legends; unlisted ones follow by name.
        is_simulated: Whether the scans are simulated, which captions and titles then state first.
        surface_tolerance_mm: Tolerance of the surface Dice; None if unknown.
        lesion_overlap: Smallest IoU of a detected lesion; None if unknown.
    """

    frame: "pandas.DataFrame"
    task: Task = SEGMENTATION
    work_dir: Path | None = None
    inits: tuple[str, ...] = ()
    is_simulated: bool = False
    surface_tolerance_mm: float | None = None
    lesion_overlap: float | None = None

    @property
    def note(self) -> str:
        """First words of captions and titles."""
        return "Simulated scans." if self.is_simulated else ""

    @property
    def labels(self) -> list[str]:
        """Classes or target contrasts."""
        return list(dict.fromkeys(self.frame["label"]))

    @property
    def measures(self) -> list[Measure]:
        """Measures that rate predictions and have a value."""
        found = self.frame.columns[self.frame.notna().any()]
        return [measure for measure in self.task.measures if measure.better and measure.key in found]

    @property
    def available(self) -> float:
        """Number of available annotated training subjects, in the fold with the fewest; NaN if unknown."""
        return self.frame["annotated_available"].min()

    @property
    def smallest_and_largest_n(self) -> list[int]:
        """The ends of the curves (a single N if there is only one), preceded by 0 if a tool needs no labels."""
        numbers = self.frame["n_annotated"]
        ends = numbers[numbers > 0] if (numbers > 0).any() else numbers
        return sorted({numbers.min(), ends.min(), ends.max()})

    @property
    def present(self) -> list[str]:
        """Initialisations that have results, in order."""
        return in_grid_order(set(self.frame["init"]), self.inits)

    @property
    def cells(self) -> list[tuple]:
        """Cells in the order of tables: by contrasts, then N, then init, so that compared cells are adjacent."""
        order = self.present
        found = set(self.frame[CELL].itertuples(index=False, name=None))
        return sorted(found, key=lambda cell: (cell[0], cell[2], order.index(cell[1])))

    @property
    def runs(self) -> dict[tuple, set[str]]:
        """Names of the runs behind each cell, such as `r0` or, with cross-validation, `fold1/r0`."""
        runs = self.frame.drop_duplicates([*CELL, "split", "repeat"])
        names = [f"{row.split}/r{row.repeat}".lstrip("/") for row in runs.itertuples()]
        return runs.assign(run=names).groupby(CELL)["run"].agg(set).to_dict()

    def of(self, **values) -> "Scores":
        """Keep the rows whose columns have these values, such as `contrasts="t2", n_annotated=4`."""
        return self.only((self.frame[list(values)] == list(values.values())).all(axis=1))

    def only(self, rows) -> "Scores":
        """Keep the rows of a boolean mask."""
        return dataclasses.replace(self, frame=self.frame[rows])

    def by_contrasts(self) -> dict[str, "Scores"]:
        """Split by input set, in the order of the rows."""
        return {name: self.of(contrasts=name) for name in dict.fromkeys(self.frame["contrasts"])}

    def per_subject(self, measure: Measure = DICE) -> "pandas.DataFrame":
        """Average repeats, then classes: one value per cell, subject and label, and one over labels.

        Returns:
            DataFrame with the columns of `CELL`, `subject`, `label` (the class names and `MEAN`), `value` (NaN if no
            repeat has one), `repeats`, and `missing` (number of repeats without a value).
        """
        import pandas

        keys = [*CELL, "subject"]
        rows = self.frame[self.frame[measure.counted_with].notna()] if measure.counted_with else self.frame
        groups = rows.groupby([*keys, "label"], sort=False)[measure.key]
        by_label = groups.agg(value="mean", repeats="size", known="count").reset_index()
        by_label["missing"] = by_label["repeats"] - by_label.pop("known")
        over_labels = by_label.groupby(keys, sort=False).agg(
            value=("value", "mean"), repeats=("repeats", "max"), missing=("missing", "sum")
        )
        return pandas.concat([by_label, over_labels.reset_index().assign(label=MEAN)], ignore_index=True)

    @functools.cached_property
    def summary(self) -> dict[str, "pandas.DataFrame"]:
        """Averages over test subjects, by key of the measure: a row per cell and label, and for the mean over labels.

        Columns: those of `CELL`, `label`, `mean`, `sd`, `ci95_low` and `ci95_high` (of the mean), `subjects` with a
        value, `missing` (scores without a value), `repeats_min` and `repeats` (per subject). Cells and labels that were
        not measured are not listed.
        """
        import pandas

        found = {}
        for measure in (one for one in self.task.measures if one.better and one.key in self.frame):
            found_cells, rows = dict(list(self.per_subject(measure).groupby(CELL, sort=False))), []
            by_cell = {cell: found_cells[cell] for cell in self.cells if cell in found_cells}
            for cell, label in itertools.product(by_cell, (*self.labels, MEAN)):
                part = by_cell[cell][by_cell[cell]["label"] == label]
                if part.empty:
                    continue
                mean, sd, low, high = mean_interval(part["value"])
                rows.append(
                    dict(zip(CELL, cell, strict=True))
                    | {"label": label, "mean": mean, "sd": sd, "ci95_low": low, "ci95_high": high}
                    | {"subjects": int(part["value"].notna().sum()), "missing": int(part["missing"].sum())}
                    | {"repeats_min": int(part["repeats"].min()), "repeats": int(part["repeats"].max())}
                )
            found[measure.key] = pandas.DataFrame(rows)
        return found


def in_grid_order(names, order=()):
    """Sort names as in `order` (default: `random` first), followed by all other names alphabetically."""
    known = [name for name in order or ("random",) if name in names]
    return known + sorted(set(names) - set(known))


def mean_interval(values):
    """Return the mean of the finite values, their standard deviation and the 95 % CI of the mean (t distribution).

    Args:
        values: `(subjects,)`; NaN if missing.

    Returns:
        `(mean, sd, low, high)`; the mean is NaN without values, the rest with fewer than two.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return (math.nan,) * 4
    mean = float(values.mean())
    if len(values) == 1:
        return mean, math.nan, math.nan, math.nan
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return mean, sd, mean - half, mean + half


def files_of(work_dir, task):
    """List metrics.json of every finished cell of a task, including those of cross-validation folds."""
    files = sorted(work_dir.glob(f"{task.folder}/{task.cells}/{METRICS}"))
    return files + sorted(work_dir.glob(f"fold*/{task.folder}/{task.cells}/{METRICS}"))


def nothing_of(work_dir, task):
    """Say that no cell of a task is finished."""
    return f"{work_dir}: no {task.folder}/{task.cells}/{METRICS}; run {task.script} first"


def read_scores(work_dir, task=SEGMENTATION, **about) -> Scores:
    """Read every finished cell of a task below a work dir, in the order of folders, subjects and the config's labels.

    Args:
        work_dir: Folder with `finetuning/` (or `synthesis/`) or `fold<K>/finetuning/`.
        task: `SEGMENTATION` or `SYNTHESIS`.
        **about: `inits`, `is_simulated`, `surface_tolerance_mm` and `lesion_overlap` of `Scores`.

    Raises:
        InputError: If no cell is finished, a file is not readable or holds an impossible score, a test subject was used
            to train the network, cells have different splits, a cell mixes configs, or a subject is tested twice in one
            repeat of a cell.
    """
    import pandas

    files = files_of(work_dir, task)
    if not files:
        raise InputError(nothing_of(work_dir, task))
    cells = {file: read_json(file) for file in files}
    for file, metrics in cells.items():
        cell_checks.check_metrics(file, metrics, task)
    cell_checks.refuse_mixed_splits(cells, work_dir)
    cell_checks.refuse_other_references(cells, task.references)
    frame = pandas.DataFrame([row for file in files for row in rows_of(file, cells[file], work_dir, task)])
    numbers = [one for one in (*(m.key for m in task.measures), *task.others, *OF_A_CELL, "judged") if one in frame]
    frame[numbers] = frame[numbers].astype(float).replace([math.inf, -math.inf], math.nan)
    frame = without_unused(frame, task)
    add_differences(frame, task)
    cell_checks.refuse_mixed_configs(frame)
    cell_checks.refuse_repeated_subjects(frame)
    return Scores(frame, task, work_dir, **about)


def rows_of(file, metrics, work_dir, task):
    """Yield the rows of one cell, one per subject and label, as `Scores.frame` describes them."""
    fold = file.relative_to(work_dir).parts[0]
    shared = {"split": "" if fold == task.folder else fold, "folder": file.parent}
    if "contrasts" not in metrics:
        metrics["contrasts"] = "+".join(metrics["inputs"])
    shared |= {key: metrics[key] for key in (*CELL, "repeat", "config_hash", *task.words)}
    shared |= {key: metrics.get(key) for key in task.of_a_cell} | about_validation(metrics) | about_external(metrics)
    order = {label: place for place, label in enumerate(metrics.get(task.labels, []))}
    keys = [measure.key for measure in task.measures if not measure.difference_of] + list(task.others)
    for row in sorted(metrics["per_subject"], key=lambda row: (str(row["subject"]), order.get(row["label"], 0))):
        yield shared | {"subject": str(row["subject"]), "label": row["label"]} | {key: row.get(key) for key in keys}
