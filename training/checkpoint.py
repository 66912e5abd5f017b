"""The files of a training that was interrupted or has ended: the state to resume from, and the history."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.checks import InputError
from utils.runs import atomic_path

LAST_COLUMNS = ("learning_rate", "seconds")  # of the history


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        tag: Text that identifies the run; a checkpoint with another tag is not resumed.
        best: Lowest validation loss so far.
        best_epoch: Its epoch, counted from 1; 0: none yet.
        waited: The epoch of the best loss, or of the last halving of the rate.
        history: One dictionary per epoch.
    """

    tag: str
    best: float = float("inf")
    best_epoch: int = 0
    waited: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The epochs after which the validation set was evaluated."""
        return [row for row in self.history if "val_loss" in row]


def write_checkpoint(
    path: Path, progress: str, variables: Sequence[np.ndarray], best: Sequence[np.ndarray] | None
) -> None:
    """Write the state at the end of an epoch to one file, atomically.

    Args:
        path: The file.
        progress: A `Progress` as text, see `text_of`.
        variables: Weights of the network, then variables of the optimizer.
        best: The best weights; None if the last ones are kept.
    """
    arrays = {f"variable_{number}": value for number, value in enumerate(variables)}
    arrays |= {f"best_{number}": value for number, value in enumerate(best or ())}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        content: dict[str, Any] = {"state": progress, **arrays}
        np.savez(file, **content)


def text_of(progress: Progress) -> str:
    """A `Progress` as JSON."""
    return json.dumps(asdict(progress))


def read_checkpoint(path: Path) -> tuple[Progress, list[np.ndarray], list[np.ndarray]]:
    """Read a file written by `write_checkpoint`.

    Returns:
        The progress, the variables, and the best weights (an empty list if there are none).

    Raises:
        InputError: The file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            progress = Progress(**json.loads(str(stored["state"])))
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and type the command again") from None
    kinds = ([key for key in arrays if key.startswith(kind)] for kind in ("variable_", "best_"))
    variables, best = ([arrays[key] for key in sorted(keys, key=_number)] for keys in kinds)
    return progress, variables, best


def _number(key):
    return int(key.rpartition("_")[2])


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write the epochs of a training as CSV, atomically."""
    columns = [*dict.fromkeys(key for row in history for key in row if key not in LAST_COLUMNS), *LAST_COLUMNS]
    lines = [",".join(str(row.get(key, "")) for key in columns) for row in history]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join([",".join(columns), *lines]) + "\n")
