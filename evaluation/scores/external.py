"""Cells whose predictions were made outside this suite: their names in tables and figures, and notes about them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluation.scores.scores import Scores

KEY = "external"  # key in metrics.json, and column of the scores with what is known of the training
ENDING = " (external)"  # no initialisation of a config can have such a name
EXTERNAL_SAYS = "(external): predictions that were made outside this suite; notes say what is known of their training."
NOTHING_STATED = "nothing was stated about its training"


def is_external(init: str) -> bool:
    """Tell whether the name of a cell in tables and figures is that of a tool outside this suite."""
    return init.endswith(ENDING)


def about_external(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of the scores in which an external cell differs from one of step 4; empty for the latter.

    Args:
        metrics: Content of metrics.json.
    """
    found = metrics.get(KEY)
    if found is None:
        return {}
    return {"init": f"{metrics['init']}{ENDING}", KEY: found["note"].rstrip(".") or NOTHING_STATED}


def external_notes(scores: "Scores") -> list[str]:
    """Say what is known of the training of each external tool, one sentence for each statement.

    Args:
        scores: A `Scores`.
    """
    if KEY not in scores.frame:
        return []
    cells = scores.frame[scores.frame["init"].map(is_external)]
    lines = []
    for (init, note), rows in cells.groupby(["init", KEY], sort=False):
        numbers = ", ".join(map(str, sorted(set(rows["n_annotated"]))))
        lines.append(f"{init}, N = {numbers}: predictions of a tool outside this suite; {note}.")
    return lines
