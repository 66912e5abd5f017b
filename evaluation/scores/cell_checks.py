"""Checks of the metrics.json of a cell before its numbers enter a table."""

import math

from evaluation.scores import external
from evaluation.scores.measures import CELL
from utils.checks import InputError

ROUNDING = 1e-6
SAME_REFERENCE = 1e-5  # relative; volumes from voxel lengths and from the determinant differ by less
LINES_SHOWN = 8


def check_metrics(file, metrics, task):
    """Refuse the content of a metrics.json that cannot be correct.

    Args:
        file: Path of the file, for messages.
        metrics: Content of the file.
        task: The `measures.Task`.

    Raises:
        InputError: A key is missing or has an invalid value, a score is out of range, or a test subject was used to
            train or select the network; the first of these is reported.
    """
    kinds = dict(task.inputs) | {"init": str, "n_annotated": int, "repeat": int}
    kinds |= {"config_hash": str, **dict.fromkeys(task.words, str | None), "per_subject": list}
    of_a_row = {"label": str, **dict.fromkeys(task.numbers, int | float | None)}
    kinds |= {key: int | float | None for key in task.of_a_cell if key in (metrics or ())}
    kinds |= {external.KEY: dict} if external.KEY in (metrics or ()) else {}
    kinds |= {"validation_dice": dict} if "validation_dice" in (metrics or ()) else {}
    found = _mistake(metrics, kinds)
    if not found and "validation_dice" in metrics:
        found = _mistake(metrics["validation_dice"], dict.fromkeys(metrics["validation_dice"], int | float | None))
    found = found or _mistake(metrics.get(external.KEY, {"note": ""}), {"note": str})
    rows = [] if found else metrics["per_subject"]
    optional = [measure.key for measure in task.measures if measure.is_optional]
    of_a_row |= {"subject": str, **dict.fromkeys(optional, int | float | None)}
    found = found or next(filter(None, (_mistake(row, of_a_row, optional) for row in rows)), None)
    if not found and not rows:
        found = "per_subject is empty"
    found = found or next((one for row in rows if (one := impossible(row, task))), None) or _leak(metrics, task)
    if found:
        script = "tools.score_predictions" if external.KEY in (metrics or ()) else "step 4"
        raise InputError(f"{file}: {found}; delete the cell's folder and run {script} again")


def refuse_mixed_splits(cells, work_dir):
    """Raise InputError if cells of one fold were made with different splits; cells without a record are skipped.

    Args:
        cells: Path of each metrics.json -> its content.
        work_dir: The work dir.
    """
    examples = {}
    for file, metrics in cells.items():
        fold = file.relative_to(work_dir).parts[0] if metrics.get("split") else ""
        if metrics.get("split_hash"):
            examples.setdefault(fold, {}).setdefault(metrics["split_hash"], file.parent)
    for fold, found in examples.items():
        if len(found) > 1:
            listed = "; ".join(f"{digest} in {folder}" for digest, folder in found.items())
            raise InputError(
                f"{work_dir / fold}: cells made with different splits ({listed}); delete the outdated folders or run "
                "step 4 with --overwrite"
            )


def refuse_other_references(cells, keys):
    """Raise InputError if two cells scored the same subject and label against different references.

    Args:
        cells: Path of each metrics.json -> its content.
        keys: Numbers of a row that describe the reference; null values are not compared.
    """
    first, problems = {}, {}
    for file, metrics in cells.items():
        for row in metrics["per_subject"]:
            for key in keys:
                value, place = row.get(key), (str(row["subject"]), row["label"], key)
                if value is None:
                    continue
                known, folder = first.setdefault(place, (value, file.parent))
                if not math.isclose(value, known, rel_tol=SAME_REFERENCE, abs_tol=SAME_REFERENCE):
                    found = f"{known:g} in {folder} and {value:g} in {file.parent}"
                    problems.setdefault(place, f"{place[0]}: {key} of '{place[1]}' is {found}")
    if problems:
        cure = "its files changed between these cells; run step 4 with --overwrite for one set of them"
        lines = list(problems.values())
        more = [f"{len(lines) - LINES_SHOWN} more such differences"] if len(lines) > LINES_SHOWN else []
        raise InputError([*(f"{line}; {cure}" for line in lines[:LINES_SHOWN]), *more])


def refuse_mixed_configs(frame):
    """Raise InputError if different configs made the runs of a cell; `frame` is that of `Scores`."""
    lines = []
    for (contrasts, init, n), cell in frame.groupby(CELL):
        if cell["config_hash"].nunique() > 1:
            examples = cell.drop_duplicates("config_hash")
            found = "; ".join(f"{row.config_hash} in {row.folder}" for row in examples.itertuples())
            lines.append(
                f"{contrasts}/{init}/n{n:02d}: made with different configs ({found}); "
                "delete the outdated folders or run step 4 with --overwrite"
            )
    if lines:
        raise InputError(lines)


def refuse_repeated_subjects(frame):
    """Raise InputError if a subject is tested twice in one repeat of a cell; `frame` is that of `Scores`."""
    keys = [*CELL, "repeat", "subject", "label"]
    repeated = frame[frame.duplicated(keys, keep=False)]
    if len(repeated):
        row = repeated.iloc[0].to_dict()
        folders = ", ".join(sorted({str(folder) for folder in repeated["folder"]})[:2])
        raise InputError(
            f"{row['contrasts']}/{row['init']}/n{row['n_annotated']:02d}: subject {row['subject']} is tested more than "
            f"once in repeat {row['repeat']} ({folders}); a subject belongs to one fold, delete the outdated ones"
        )


def impossible(row, task):
    """Report a score of a row that is outside the range of its measure; None if there is none."""
    for measure in task.measures:
        value, low, high = row.get(measure.key), measure.low, measure.high
        if isinstance(value, int | float) and not low - ROUNDING <= value <= high + ROUNDING:
            return f"{measure.key} of {row['subject']} is {value:g}, expected {low:g} to {high:g}"
    return None


def _leak(metrics, task):
    """Report a test subject that was used to train or select the network; None if there is none."""
    tested = {row["subject"] for row in metrics["per_subject"]}
    for key in task.untested:
        if both := tested.intersection(map(str, metrics.get(key) or ())):
            return f"{min(both)} is tested and among {key}"
    return None


def _mistake(values, kinds, optional=()):
    if not isinstance(values, dict):
        return f"holds {type(values).__name__}, expected keys with values"
    for key, kind in kinds.items():
        if key not in values and key in optional:
            continue
        if key not in values:
            return f"key '{key}' is missing"
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            return f"{key} holds {type(values[key]).__name__}"
    return None
