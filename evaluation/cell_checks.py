"""What metrics.json of a cell must look like before its numbers go into a table."""

import math

from utils.checks import InputError

# Where scores can lie, by the beginning of their names; SSIM of opposite images is negative.
LIMITS: dict[str, tuple[float, float]] = {"dice": (0, 1), "surface_dice": (0, 1), "ssim": (-1, 1)}
LIMITS |= dict.fromkeys(("hd95_mm", "volume_ml", "mse"), (0, math.inf))
ROUNDING = 1e-6
SAME_REFERENCE = 1e-5  # relative; a volume from the lengths of voxels and one from the determinant differ by less
LINES_SHOWN = 8


def checked_metrics(file, metrics, task):
    """Return the content of metrics.json, if it can be believed.

    Args:
        file: Its path, for messages.
        metrics: What it holds.
        task: The `evaluation.results.Task`.

    Raises:
        InputError: A key is missing or holds what it cannot, a score lies where none can lie, or a tested subject is
            among those that trained or chose the network; the first of these is named.
    """
    kinds = dict(task.inputs) | {"init": str, "n_annotated": int, "repeat": int}
    kinds |= {"config_hash": str, **dict.fromkeys(task.words, str | None), "per_subject": list}
    of_a_row = {"label": str, **dict.fromkeys(task.metrics, int | float | None)}
    kinds |= {key: int | float | None for key in task.of_a_cell if key in (metrics or ())}
    kinds |= {"validation_dice": dict} if "validation_dice" in (metrics or ()) else {}
    found = _mistake(metrics, kinds)
    if not found and "validation_dice" in metrics:
        found = _mistake(metrics["validation_dice"], dict.fromkeys(metrics["validation_dice"], int | float | None))
    rows = [] if found else metrics["per_subject"]
    found = found or next(filter(None, (_mistake(row, of_a_row | {"subject": str}) for row in rows)), None)
    if not found and not rows:
        found = "per_subject is empty"
    found = found or next(filter(None, map(_impossible, rows)), None) or _leak(metrics, task)
    if found:
        raise InputError(f"{file}: {found}; delete the cell's folder and run step 4 again")
    return metrics


def refuse_mixed_splits(cells, work_dir):
    """Raise InputError when cells of one fold were made with different splits; those that do not say are not compared.

    Args:
        cells: Path of each metrics.json to its content.
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
    """Raise InputError when two cells scored one subject and label against different references.

    Args:
        cells: Path of each metrics.json to its content.
        keys: Numbers of a row that describe the reference; where one is null it is not compared.
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


def _impossible(row):
    """Say which score of a row lies where no such score can lie; None if all is well."""
    for key, value in row.items():
        low, high = next((ends for name, ends in LIMITS.items() if key.startswith(name)), (-math.inf, math.inf))
        if isinstance(value, int | float) and not low - ROUNDING <= value <= high + ROUNDING:
            return f"{key} of {row['subject']} is {value:g}, expected {low:g} to {high:g}"
    return None


def _leak(metrics, task):
    """Say which subject trained or chose the network that it tests; None if there is none."""
    tested = {row["subject"] for row in metrics["per_subject"]}
    for key in task.untested:
        if both := tested.intersection(map(str, metrics.get(key) or ())):
            return f"{min(both)} is tested and among {key}"
    return None


def _mistake(values, kinds):
    if not isinstance(values, dict):
        return f"holds {type(values).__name__}, expected keys with values"
    for key, kind in kinds.items():
        if key not in values:
            return f"key '{key}' is missing"
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            return f"{key} holds {type(values[key]).__name__}"
    return None
