"""`Scores` made from small frames, with the fields filled in that a test does not care about."""

import math

from evaluation.scores.scores import Scores

FILLED = {"split": "", "repeat": 0, "dead": ""}
FILLED |= dict.fromkeys(("annotated_available", "n_selecting", "judged", "duration_s", "compile_s"), math.nan)


def as_scores(frame, **about):
    """Return the `Scores` of a frame with at least contrasts, init, n_annotated, subject, label and a measure."""
    return Scores(frame.assign(**{key: value for key, value in FILLED.items() if key not in frame}), **about)


def as_dice(values, **about):
    """Return `Scores` with the given Dice by subject, from which the means over labels follow."""
    return as_scores(values.rename(columns={"value": "dice"}), **about)
