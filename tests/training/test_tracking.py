"""MLflow receives config, losses, scores and records; a recorder stands in if it is not installed."""

import argparse
import importlib.machinery
import json
import sys
import types

import pytest

from tests.training.small import SharedSteps, constrained, settings
from training.tracking import mean_scores, tracked
from utils.checks import InputError
from utils.command_line import add_training_options, chosen_sinks

HASH = "0123abcd"


class Recorder(types.ModuleType):
    """The part of MLflow that the suite uses, with runs as dictionaries."""

    def __init__(self):
        super().__init__("mlflow")
        self.__spec__, self.runs, self.experiment = importlib.machinery.ModuleSpec("mlflow", None), [], None

    def set_experiment(self, name):
        self.experiment = name

    def start_run(self, run_name):
        self.runs.append({"name": run_name, "experiment": self.experiment, "params": {}, "metrics": {}, "files": []})
        return self

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.runs[-1]["status"] = "FAILED" if kind else "FINISHED"

    def log_params(self, params):
        self.runs[-1]["params"] |= params

    def log_metrics(self, metrics, step=0):
        for name, value in metrics.items():
            self.runs[-1]["metrics"].setdefault(name, {})[step] = value

    def log_artifact(self, path):
        self.runs[-1]["files"].append(path.rpartition("/")[2])


@pytest.fixture
def mlflow(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", recorder := Recorder())
    return recorder


@pytest.fixture
def config(tmp_path):
    return {"name": "study", "seed": 3, "work_dir": str(tmp_path), "loss": {"temperature": 0.1, "note": "x" * 900}}


@pytest.fixture(scope="module")
def pretrain():
    return SharedSteps().of(constrained)


def options(*words):
    add_training_options(parser := argparse.ArgumentParser())
    return parser.parse_args(words)


def test_a_run_has_config_losses_and_records(slices, pretrain, config, mlflow, tmp_path):
    folder = tmp_path / "pretraining" / "constrained"
    with tracked(folder, config, HASH, is_wanted=True):
        _, history = pretrain(slices, folder, schedule=settings(epochs=2), **chosen_sinks(options("--mlflow")))
    (run,) = mlflow.runs
    assert (run["name"], run["experiment"], run["status"]) == ("pretraining/constrained", "study", "FINISHED")
    assert run["params"]["loss.temperature"] == "0.1" and run["params"]["config_hash"] == HASH
    assert run["params"]["seed"] == "3" and len(run["params"]["loss.note"]) == 500
    for row in history:
        assert {name: values[row["epoch"]] for name, values in run["metrics"].items()} | {"epoch": row["epoch"]} == row
    assert run["files"] == ["history.csv"]


def test_a_resumed_run_has_the_losses_of_earlier_epochs(slices, pretrain, config, mlflow, tmp_path):
    pretrain(slices, tmp_path, schedule=settings(epochs=2))
    with tracked(tmp_path, config, HASH, is_wanted=True):
        _, history = pretrain(slices, tmp_path, schedule=settings(epochs=3), with_mlflow=True)
    assert mlflow.runs[0]["metrics"]["loss"] == {row["epoch"]: row["loss"] for row in history} and len(history) == 3


def test_a_run_that_fails_says_so_and_sends_nothing_more(config, mlflow, tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"per_subject": [{"subject": "a", "label": "b", "dice": 1.0}]}))
    with pytest.raises(InputError, match="loss"), tracked(tmp_path, config, HASH, is_wanted=True):
        raise InputError("the loss became nan")
    assert (mlflow.runs[0]["status"], mlflow.runs[0]["metrics"], mlflow.runs[0]["files"]) == ("FAILED", {}, [])


def test_scores_are_means_over_subjects_where_they_are_defined(config, mlflow, tmp_path):
    rows = [("a", "liver", 0.5, 2.0), ("b", "liver", 1.0, None), ("a", "spleen", 0.25, 4.0)]
    rows = [dict(zip(("subject", "label", "dice", "hd95_mm"), row, strict=True)) for row in rows]
    means = {"test/liver/dice": 0.75, "test/spleen/dice": 0.25, "test/spleen/hd95_mm": 4.0}
    assert mean_scores(rows) == means, "no mean without the subject that has no distance"
    (tmp_path / "metrics.json").write_text(json.dumps({"per_subject": rows}))
    with tracked(tmp_path, config, HASH, is_wanted=True):
        pass
    assert mlflow.runs[0]["metrics"] == {name: {0: mean} for name, mean in means.items()}
    assert mlflow.runs[0]["files"] == ["metrics.json"]


def test_without_the_option_mlflow_is_not_touched(config, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with tracked(tmp_path, config, HASH, is_wanted=chosen_sinks(options())["with_mlflow"]):
        pass


def test_where_mlflow_is_absent_the_option_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--mlflow: MLflow is not installed; type: pip install mlflow-skinny=="):
        chosen_sinks(options("--mlflow"))
