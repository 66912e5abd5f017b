"""Every score of a study in one CSV file: written with its report, and read to rebuild the report from it alone."""

from pathlib import Path

from evaluation.scores import cell_checks, external
from evaluation.scores.measures import OF_A_CELL, SEGMENTATION, SYNTHESIS, add_differences
from evaluation.scores.scores import Scores
from utils.checks import InputError
from utils.runs import atomic_path

WORDS = ("split", "folder", "contrasts", "init", "config_hash", "subject", "label", "dead")
WHOLE_NUMBERS = ("n_annotated", "repeat")
LATER = ("n_selecting", "judged", "dead", *OF_A_CELL)  # columns that files of earlier versions lack


def write_scores(scores, path):
    """Write every score; folders are relative to the work dir.

    Args:
        scores: A `Scores`.
        path: The CSV file.
    """
    folders = scores.frame["folder"]
    folders = [str(folder.relative_to(scores.work_dir) if scores.work_dir else folder) for folder in folders]
    with atomic_path(path) as temporary:
        scores.frame.assign(folder=folders).to_csv(temporary, index=False)


def read_scores_csv(path, **about):
    """Read a file written by `write_scores`, without loss of precision.

    Args:
        path: The CSV file.
        **about: `inits`, `is_simulated`, `surface_tolerance_mm` and `lesion_overlap` of `Scores`.

    Returns:
        A `Scores` without a work dir, of the task that the columns name.

    Raises:
        InputError: The file is not such a table, holds an impossible score, mixes configs in a cell, or tests a subject
            twice in one repeat of a cell.
    """
    import pandas

    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)  # a subject may be called NA
    except (OSError, ValueError) as error:
        raise InputError(f"--scores {path}: cannot be read as CSV ({error}); give scores.csv of a report") from None
    task = SYNTHESIS if SYNTHESIS.measures[0].key in frame else SEGMENTATION
    words = [*WORDS, *task.words, external.KEY]
    needed = {*words, *WHOLE_NUMBERS, *task.numbers} - {*LATER, external.KEY}
    if lacking := sorted(needed - set(frame)):
        raise InputError(f"--scores {path}: no column {', '.join(lacking)}; give scores.csv of a report")
    if frame.empty:
        raise InputError(f"--scores {path}: holds no score")
    frame = frame.assign(**{column: "" for column in LATER if column not in frame})
    numbers = [column for column in frame if column not in words]
    try:
        frame[numbers] = frame[numbers].replace("", "nan").astype(float)
        frame = frame.astype(dict.fromkeys(WHOLE_NUMBERS, int)).assign(folder=frame["folder"].map(Path))
    except ValueError as error:
        raise InputError(f"--scores {path}: {error}; expected a number") from None
    for row in frame.to_dict("records"):
        known = {key: value for key, value in row.items() if value == value or not isinstance(value, float)}
        if found := cell_checks.impossible(known, task):
            raise InputError(f"--scores {path}: {found}")
    add_differences(frame, task)
    cell_checks.refuse_mixed_configs(frame)
    cell_checks.refuse_repeated_subjects(frame)
    return Scores(frame, task, **about)
