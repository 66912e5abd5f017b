"""`Scores` of frames that a test makes up, with what a test does not care about filled in."""

import math

from evaluation.scores.scores import Scores

FILLED = {"split": "", "repeat": 0, "dead": ""}
FILLED |= dict.fromkeys(("annotated_available", "n_selecting", "judged", "duration_s", "compile_s"), math.nan)


def as_scores(frame, **about):
    """Return the `Scores` of a frame that has at least contrasts, init, n_annotated, subject, label and a measure."""
    return Scores(frame.assign(**{key: value for key, value in FILLED.items() if key not in frame}), **about)


def as_dice(values, **about):
    """Return `Scores` whose Dice are values by subject; their means over labels follow from them."""
    return as_scores(values.rename(columns={"value": "dice"}), **about)
