"""MLflow records of a run, if requested: its config, the losses of every epoch, scores and files."""

import contextlib
import math
import numbers
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from utils.runs import read_json
from utils.work_dir import METRICS, MODEL

LONGEST = 500  # characters of a parameter, the smallest limit of any server
FILES: tuple[str, ...] = (
    "resolved_config.yaml",
    "environment.json",
    "command.txt",
    "subjects.json",
    "history.csv",
    "curves.png",
    MODEL,
    METRICS,
)


@contextlib.contextmanager
def tracked(folder: Path, config: dict[str, Any], config_hash: str, is_wanted: bool) -> Iterator[None]:
    """Record the body of the `with` statement in MLflow as one run, which an exception marks as failed.

    `MLFLOW_TRACKING_URI` names the server; without it, MLflow uses `mlflow.db` and `mlruns/` in the current folder.

    Args:
        folder: Run folder, whose records and scores are sent at the end; the run is named after it.
        config: Plain dictionary of the resolved config; the experiment is named after it.
        config_hash: Hash of the settings that affect the result, shown with the config.
        is_wanted: If False, nothing is recorded.
    """
    if not is_wanted:
        yield
        return
    import mlflow

    mlflow.set_experiment(config["name"])
    with mlflow.start_run(run_name=os.path.relpath(folder, config["work_dir"])):
        mlflow.log_params({key: str(value)[:LONGEST] for key, value in _leaves(config | {"config_hash": config_hash})})
        yield
        if (folder / METRICS).exists():
            metrics = read_json(folder / METRICS)
            mlflow.log_metrics(mean_scores(metrics["per_subject"], metrics.get("scored_on", "test")))
        for file in FILES:
            if (folder / file).exists():
                mlflow.log_artifact(str(folder / file))


class MLflow(keras.callbacks.Callback):
    """Send every row of a history to the open run, including those from before it was resumed.

    Args:
        history: List of rows; each epoch appends one before this callback is called.
    """

    def __init__(self, history):
        super().__init__()
        self.history, self.sent = history, 0

    def on_epoch_end(self, epoch, logs=None):
        import mlflow

        for row in self.history[self.sent :]:
            mlflow.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=row["epoch"])
        self.sent = len(self.history)


def mean_scores(rows, part="test"):
    """Average scores over subjects: `{"test/label/score": mean}`, only for scores defined for every subject.

    Args:
        rows: `per_subject` from metrics.json.
        part: Which subjects these are: test or validation.
    """
    found = {}
    for row in rows:
        for name, value in row.items():
            if value is None or isinstance(value, numbers.Real):
                found.setdefault(f"{part}/{row['label']}/{name}", []).append(math.nan if value is None else value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _leaves(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
