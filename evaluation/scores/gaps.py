"""What a report must state before its numbers: cells that are missing, from another config, or with dead classes."""

from evaluation.scores.dead_classes import DEAD
from evaluation.scores.measures import CELL, LESIONS


def missing_cells(scores, contrasts, inits, subjects_n, repeats, splits):
    """Name the cells of a grid that have no result.

    Args:
        scores: A `Scores`.
        contrasts: Names of the input sets of the grid.
        inits: Initialisations of the grid.
        subjects_n: Numbers of annotated subjects of the grid.
        repeats: Number of repeats.
        splits: Names of the folds; `[""]` without cross-validation.

    Returns:
        List of strings, one per contrasts, init and N with missing results: how many runs there are of how many.
    """
    found = scores.frame.drop_duplicates("folder").groupby(CELL).size().to_dict()
    asked = repeats * len(splits)
    missing = []
    for key in ((c, i, n) for c in contrasts for i in inits for n in subjects_n):
        if found.get(key, 0) < asked:
            missing.append(f"{key[0]}/{key[1]}/n{key[2]:02d}: {found.get(key, 0)} of {asked} runs")
    return missing


def outdated_cells(scores, contrasts, inits, hash_of):
    """Name the cells made with another config.

    Args:
        scores: A `Scores`.
        contrasts: Names of the input sets of the config.
        inits: Initialisations of the config.
        hash_of: Function of contrasts and init that returns the hash that their cells should have.

    Returns:
        List of sentences.
    """
    lines = []
    for (name, init, n), cell in scores.frame.groupby(CELL):
        is_known = name in contrasts and init in inits
        if not is_known or cell["config_hash"].iloc[0] != hash_of(name, init):
            lines.append(f"{name}/{init}/n{n:02d} was made with another config than this one.")
    return lines


def dead_notes(scores):
    """Name the cells with dead classes.

    Args:
        scores: A `Scores`.

    Returns:
        List of sentences, one for each contrasts, init and N with dead classes.
    """
    lines = []
    for (contrasts, init, n), cell in scores.frame.groupby(CELL, sort=False):
        runs = cell.drop_duplicates("folder").sort_values(["split", "repeat"])
        found = [f"{f'{row.split}/r{row.repeat}'.lstrip('/')} {row.dead}" for row in runs.itertuples() if row.dead]
        if found:
            named = "; ".join(found).replace(",", ", ")
            lines.append(f"{contrasts}/{init}/n{n:02d}: dead classes (validation Dice below {DEAD}): {named}.")
    return lines


def lesion_notes(scores, lesions):
    """Name the labels that are lesions, and how many runs did not count them because they were finished earlier.

    Args:
        scores: A `Scores` of segmentation.
        lesions: Labels that the config says are lesions.

    Returns:
        List of sentences, one for each such label.
    """
    runs, lines = scores.frame["folder"].nunique(), []
    for label in lesions:
        of_label = scores.frame[scores.frame["label"] == label]
        counted = of_label[of_label[LESIONS.key].notna()] if LESIONS.key in of_label else of_label[:0]
        if without := runs - counted["folder"].nunique():
            lines.append(
                f"No lesions of '{label}' were counted in {without} of {runs} runs, which were scored before "
                "evaluation.lesions named it; finetune_segmentation.py --overwrite scores these again."
            )
    return lines
