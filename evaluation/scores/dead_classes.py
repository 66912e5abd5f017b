"""Classes that a network has not learned: Dice over all validation slices, for tables and the report."""

import math

import numpy as np

from evaluation.report.formats import from_to, number

DEAD = 0.2  # Dice over the validation subjects; classes below it are dead (ours)
SELECTING_SAYS = "Selecting: validation subjects, not counted in N, that selected weights or learning rates."
DEAD_SAYS = f"Dead: classes whose Dice over the validation subjects is below {DEAD}, in all runs. -: not recorded."


def pooled_dice(pairs, labels):
    """Compute the Dice of every class over the pixels of all slices, as if they were one volume.

    Args:
        pairs: Pairs of class indices `(S, H, W)`, predicted and reference, one for each subject.
        labels: Class names; the first has index 1.

    Returns:
        Dictionary from class name to Dice in [0, 1]; None if the class does not occur in the reference.
    """
    both, either, shown = (np.zeros(len(labels) + 1, np.int64) for _ in range(3))
    for predicted, reference in pairs:
        counts = [np.bincount(values.ravel(), minlength=len(both)) for values in (predicted, reference)]
        both += np.bincount(reference[predicted == reference].ravel(), minlength=len(both))
        either, shown = either + counts[0] + counts[1], shown + counts[1]
    found = zip(labels, 2 * both[1:] / np.maximum(either[1:], 1), shown[1:], strict=True)
    return {label: float(dice) if pixels else None for label, dice, pixels in found}


def dead_labels(validation_dice):
    """Name the classes whose validation Dice, from `pooled_dice`, is below `DEAD`."""
    return [label for label, dice in validation_dice.items() if dice is not None and dice < DEAD]


def about_validation(metrics):
    """Read what metrics.json records about the validation subjects of its cell.

    Args:
        metrics: Content of the file; earlier versions recorded less.

    Returns:
        Dictionary with `n_selecting`, the number of validation subjects that selected weights or learning rates (None:
        not recorded), `judged`, the number of classes with a validation Dice (None: not recorded), and `dead`, the
        names of the dead ones, separated by commas.
    """
    subjects, dice = metrics.get("validation_subjects"), metrics.get("validation_dice")
    selecting = metrics.get("n_selecting", None if subjects is None else len(subjects))
    judged = None if dice is None else sum(value is not None for value in dice.values())
    return {"n_selecting": selecting, "judged": judged, "dead": ",".join(dead_labels(dice or {}))}


def about_runs(cell):
    """Summarise what the runs of a cell record about their validation subjects.

    Args:
        cell: Rows of `collect_results`.

    Returns:
        Dictionary with `selecting_min` and `selecting`, the smallest and largest number of validation subjects that
        selected weights or rates; and `dead` and `judged`, the number of dead and of judged classes over all runs. NaN
        (`judged`: 0) if nothing is recorded.
    """
    runs = cell.drop_duplicates("folder")
    judged = int(runs["judged"].fillna(0).sum())
    dead = sum(len(names.split(",")) for names in runs["dead"] if names)
    selecting = {"selecting_min": runs["n_selecting"].min(), "selecting": runs["n_selecting"].max()}
    return selecting | {"dead": dead if judged else math.nan, "judged": judged}


def selecting_text(row):
    """Write how many validation subjects selected weights or learning rates; `-`: not recorded."""
    return from_to(*(number(row[key], ".0f") for key in ("selecting_min", "selecting")))


def dead_text(row):
    """Write how many of the classes judged in all runs are dead; `-`: not recorded."""
    return f"{row['dead']:.0f} of {row['judged']}" if row["judged"] else "-"
