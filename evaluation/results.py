"""From the metrics.json files of a work dir to one tidy table, and to one value per subject.

Averages always go in this order: the repeats of a subject (draws of annotated subjects), then its classes, then the
subjects. The spread in every table and figure is therefore that between test subjects. NaN scores (a class absent in
reference and prediction) are left out of averages and counted.
"""

import dataclasses
import math

from evaluation.cell_checks import checked_metrics, refuse_mixed_splits, refuse_other_references
from evaluation.dead_classes import DEAD, about_validation
from evaluation.measures import REGIONS, SYNTHESIS_MEASURES
from utils.checks import InputError
from utils.runs import read_json

METRICS = ("dice", "hd95_mm", "surface_dice", "volume_ml", "volume_ml_reference")
REFERENCES = ("volume_ml_reference", "voxels_reference")  # the second where there is no voxel size
VOLUME_ERROR = "volume_error_ml"
OF_A_CELL = ("annotated_available", "duration_s", "compile_s", "n_selecting")
CELL = ["contrasts", "init", "n_annotated"]
MEAN = "mean over labels"


@dataclasses.dataclass(frozen=True)
class Task:
    """One of the two tasks of step 4: where and how its scores are kept.

    Attributes:
        folder: Folder below the work dir or a fold.
        cells: Pattern of the folders of cells below it.
        script: The script that makes them.
        labels: Key of metrics.json that lists the labels in the order of the config.
        metrics: Numbers of a row of metrics.json.
        words: What else metrics.json says of a whole cell.
        inputs: Key of metrics.json that names what networks see, and the kind of its value.
        of_a_cell: Numbers that metrics.json may say of a whole cell.
        references: Numbers of a row that describe the reference: one subject and label has one in all cells.
        untested: Keys of metrics.json that list subjects who must not be among those that are scored.
    """

    folder: str
    cells: str
    script: str
    labels: str
    metrics: tuple
    references: tuple
    words: tuple = ()
    inputs: tuple = (("contrasts", str),)
    of_a_cell: tuple = OF_A_CELL
    untested: tuple = ("train_subjects", "validation_subjects")


SEGMENTATION = Task("finetuning", "*/*/n*/r*", "finetune_segmentation.py", "labels", METRICS, REFERENCES)
SYNTHESIS = Task(
    "synthesis",
    "*/n*/r*",
    "finetune_synthesis.py",
    "targets",
    (
        *(measure.column(region) for region in REGIONS for measure in SYNTHESIS_MEASURES),
        *("data_range", "intensity_low", "intensity_high"),
    ),
    ("intensity_low", "intensity_high"),
    ("mask",),
    (("inputs", list),),
)


def collect_tasks(work_dir, tasks):
    """Read the finished cells of several tasks.

    Args:
        work_dir: As for `collect_results`.
        tasks: List of `Task`.

    Returns:
        `(results, missing)`: mapping of task to its results, and a sentence on each task without a finished cell.

    Raises:
        InputError: When no task has one, or as `collect_results`.
    """
    missing = {task: _nothing_of(work_dir, task) for task in tasks if not files_of(work_dir, task)}
    if len(missing) == len(tasks):
        raise InputError(list(missing.values()))
    return {task: collect_results(work_dir, task) for task in tasks if task not in missing}, list(missing.values())


def files_of(work_dir, task):
    """List metrics.json of every finished cell of a task."""
    files = sorted(work_dir.glob(f"{task.folder}/{task.cells}/metrics.json"))
    return files + sorted(work_dir.glob(f"fold*/{task.folder}/{task.cells}/metrics.json"))


def _nothing_of(work_dir, task):
    return f"{work_dir}: no {task.folder}/{task.cells}/metrics.json; run {task.script} first"


def collect_results(work_dir, task=SEGMENTATION):
    """Read every finished cell of a task below a work dir, those of cross-validation folds included.

    Args:
        work_dir: Folder with `finetuning/` (or `synthesis/`) or `fold<K>/finetuning/`.
        task: `SEGMENTATION` or `SYNTHESIS`.

    Returns:
        DataFrame, one row per cell, test subject and label: `split`, `contrasts`, `init`, `n_annotated`, `repeat`,
        `subject`, `label`, the metrics as floats (NaN where there is no value), `volume_error_ml` (segmented minus
        reference), `config_hash` and `folder` (a `Path`); and, repeated in each row of a cell and NaN in files from
        before they were written: `annotated_available` (annotated training subjects there are), `duration_s`,
        `compile_s` (of these, spent on compiling), and those of `dead_classes.about_validation`. Rows come in the order
        of folders, subjects and the config's labels. Of synthesis, `label` is the target contrast, `contrasts` joins
        the inputs, `mask` says where it came from, and a PSNR that is infinite (its MSE is 0) is NaN like other values
        that cannot be averaged.

    Raises:
        InputError: When no cell is finished, a file is not readable or holds an impossible score, a subject trained the
            network that it tests, cells have different splits, a cell mixes configs, or a subject is tested twice in
            one repeat of a cell.
    """
    import pandas

    files = files_of(work_dir, task)
    if not files:
        raise InputError(_nothing_of(work_dir, task))
    cells = {file: checked_metrics(file, read_json(file), task) for file in files}
    refuse_mixed_splits(cells, work_dir)
    refuse_other_references(cells, task.references)
    results = pandas.DataFrame([row for file in files for row in rows_of(file, cells[file], work_dir, task)])
    numbers = [*task.metrics, *OF_A_CELL, "judged"]
    results[numbers] = results[numbers].astype(float).replace([math.inf, -math.inf], math.nan)
    if task is SEGMENTATION:
        results[VOLUME_ERROR] = results["volume_ml"] - results["volume_ml_reference"]
    _refuse_mixed_configs(results)
    _refuse_repeated_subjects(results)
    return results


def rows_of(file, metrics, work_dir, task):
    """Yield the rows of one cell, one per subject and label, as `collect_results` describes them."""
    fold = file.relative_to(work_dir).parts[0]
    shared = {"split": "" if fold == task.folder else fold, "folder": file.parent}
    if task is SYNTHESIS:
        metrics["contrasts"] = "+".join(metrics["inputs"])
    shared |= {key: metrics[key] for key in (*CELL, "repeat", "config_hash", *task.words)}
    shared |= {key: metrics.get(key) for key in task.of_a_cell} | about_validation(metrics)
    order = {label: place for place, label in enumerate(metrics.get(task.labels, []))}
    for row in sorted(metrics["per_subject"], key=lambda row: (str(row["subject"]), order.get(row["label"], 0))):
        scores = {key: row[key] for key in task.metrics}
        yield shared | {"subject": str(row["subject"]), "label": row["label"]} | scores


def _refuse_mixed_configs(results):
    lines = []
    for (contrasts, init, n), cell in results.groupby(CELL):
        if cell["config_hash"].nunique() > 1:
            examples = cell.drop_duplicates("config_hash")
            found = "; ".join(f"{row.config_hash} in {row.folder}" for row in examples.itertuples())
            lines.append(
                f"{contrasts}/{init}/n{n:02d}: made with different configs ({found}); "
                "delete the outdated folders or run step 4 with --overwrite"
            )
    if lines:
        raise InputError(lines)


def _refuse_repeated_subjects(results):
    keys = [*CELL, "repeat", "subject", "label"]
    repeated = results[results.duplicated(keys, keep=False)]
    if len(repeated):
        row = repeated.iloc[0].to_dict()
        folders = ", ".join(sorted({str(folder) for folder in repeated["folder"]})[:2])
        raise InputError(
            f"{row['contrasts']}/{row['init']}/n{row['n_annotated']:02d}: subject {row['subject']} is tested more than "
            f"once in repeat {row['repeat']} ({folders}); a subject belongs to one fold, delete the outdated ones"
        )


def missing_cells(results, contrasts, inits, subjects_n, repeats, splits):
    """Name the cells of a grid that have no result.

    Args:
        results: From `collect_results`.
        contrasts: Names of the input sets of the grid.
        inits: Initialisations of the grid.
        subjects_n: Numbers of annotated subjects of the grid.
        repeats: Number of repeats.
        splits: Names of the folds; `[""]` without cross-validation.

    Returns:
        List of strings, one per contrasts, init and N with results missing: what is there and what was asked for.
    """
    found = results.drop_duplicates("folder").groupby(CELL).size().to_dict()
    asked = repeats * len(splits)
    missing = []
    for key in ((c, i, n) for c in contrasts for i in inits for n in subjects_n):
        if found.get(key, 0) < asked:
            missing.append(f"{key[0]}/{key[1]}/n{key[2]:02d}: {found.get(key, 0)} of {asked} runs")
    return missing


def per_subject(results, metric="dice"):
    """Average repeats, then classes: one value per cell, subject and label, and one over labels.

    Args:
        results: From `collect_results`.
        metric: One of the task's metrics, or `volume_error_ml`.

    Returns:
        DataFrame with the columns of `CELL`, `subject`, `label` (the class names and `MEAN`), `value` (NaN when no
        repeat has one), `repeats`, and `missing` (number of repeats without a value).
    """
    import pandas

    keys = [*CELL, "subject"]
    by_label = (
        results.groupby([*keys, "label"], sort=False)[metric]
        .agg(value="mean", repeats="size", known="count")
        .reset_index()
    )
    by_label["missing"] = by_label["repeats"] - by_label.pop("known")
    over_labels = (
        by_label.groupby(keys, sort=False)
        .agg(value=("value", "mean"), repeats=("repeats", "max"), missing=("missing", "sum"))
        .reset_index()
        .assign(label=MEAN)
    )
    return pandas.concat([by_label, over_labels], ignore_index=True)


def all_labels(values):
    """Class names of a table of `per_subject`, without the mean over them."""
    return [label for label in dict.fromkeys(values["label"]) if label != MEAN]


def outdated_cells(results, contrasts, inits, hash_of):
    """Name the cells that another config made.

    Args:
        results: From `collect_results`.
        contrasts: Names of the input sets that the config has.
        inits: Initialisations that it has.
        hash_of: Function of contrasts and init that returns the hash that their cells should have.

    Returns:
        List of sentences.
    """
    lines = []
    for (name, init, n), cell in results.groupby(CELL):
        is_known = name in contrasts and init in inits
        if not is_known or cell["config_hash"].iloc[0] != hash_of(name, init):
            lines.append(f"{name}/{init}/n{n:02d} was made with another config than this one.")
    return lines


def dead_notes(results):
    """Name the cells with dead classes.

    Args:
        results: From `collect_results`.

    Returns:
        List of sentences, one for each contrasts, init and N that has some.
    """
    lines = []
    for (contrasts, init, n), cell in results.groupby(CELL, sort=False):
        runs = cell.drop_duplicates("folder").sort_values(["split", "repeat"])
        found = [f"{f'{row.split}/r{row.repeat}'.lstrip('/')} {row.dead}" for row in runs.itertuples() if row.dead]
        if found:
            named = "; ".join(found).replace(",", ", ")
            lines.append(f"{contrasts}/{init}/n{n:02d}: dead classes (validation Dice below {DEAD}): {named}.")
    return lines


def repeats_of(results):
    """Name the runs behind each contrasts, init and N.

    Args:
        results: From `collect_results`.

    Returns:
        Mapping of `(contrasts, init, n_annotated)` to a set of names, `r0` or, with cross-validation, `fold1/r0`.
    """
    runs = results.drop_duplicates([*CELL, "split", "repeat"])
    names = [f"{row.split}/r{row.repeat}".lstrip("/") for row in runs.itertuples()]
    return runs.assign(run=names).groupby(CELL)["run"].agg(set).to_dict()


def in_grid_order(names, order=()):
    """Sort names as in `order` (default: `random` first), names that are not in it alphabetically behind."""
    known = [name for name in order or ("random",) if name in names]
    return known + sorted(set(names) - set(known))
