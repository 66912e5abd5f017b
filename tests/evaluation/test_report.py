"""The HTML page: what stands on it, escaped and complete."""

import base64
import json

import pandas
import pytest

from evaluation.figures import save_training_curves
from evaluation.report import ReportFigure, collect_runs, subject_grid, write_report
from evaluation.results import MEAN
from evaluation.tables import Table


def write_record(folder, command, **environment):
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "command.txt").write_text(command + "\n")


def test_run_records_are_gathered_once_each(tmp_path):
    same = {"backend": "tensorflow", "device": "cpu", "seed": 1}
    write_record(
        tmp_path / "finetuning" / "r0", "python finetune_segmentation.py", **same, started="2", duration_s=1800
    )
    write_record(tmp_path / "finetuning" / "r1", "python finetune_segmentation.py", **same, started="3")
    write_record(
        tmp_path / "pretraining", "python pretrain.py", **same | {"device": "gpu"}, started="1", duration_s=3600
    )
    runs = collect_runs(tmp_path)
    assert [(entry["command"], entry["runs"], entry["unfinished"]) for entry in runs["commands"]] == [
        ("python pretrain.py", 1, 0),
        ("python finetune_segmentation.py", 2, 1),
    ]
    assert runs["hours"] == pytest.approx(1.5)
    assert runs["devices"] == ["cpu", "gpu"]
    assert [(entry["runs"], entry["scripts"]) for entry in runs["environments"]] == [
        (1, ["pretrain.py"]),
        (2, ["finetune_segmentation.py"]),
    ]


def test_subjects_are_listed_worst_first():
    rows = [("a", "random", 0.9), ("b", "random", 0.3), ("b", "constrained", 0.4), ("c", "random", float("nan"))]
    values = pandas.DataFrame(
        [{"contrasts": "t2", "init": i, "n_annotated": 2, "subject": s, "label": MEAN, "value": v} for s, i, v in rows]
    )
    grid = subject_grid(values)
    assert grid["columns"] == [("t2", "random", 2), ("t2", "constrained", 2)]
    assert grid["rows"] == [("c", [None, None]), ("b", [0.3, 0.4]), ("a", [0.9, None])]


@pytest.mark.parametrize("is_simulated", [True, False])
def test_the_page_is_complete_and_escaped(tmp_path, is_simulated):
    png = tmp_path / "curves.png"
    save_training_curves([{"epoch": 1, "loss": 1.0}], png, title="x")
    numbers = pandas.DataFrame({"A": ["1 < 2"]})
    runs = {
        "commands": [{"command": "python a.py --set x=<y>", "runs": 1, "hours": 0.5, "unfinished": 0}],
        "environments": [{"text": '{"device": "cpu"}', "runs": 1, "scripts": ["a.py"]}],
    }
    path = tmp_path / "index.html"
    write_report(
        path,
        title="tiny & small",
        is_simulated=is_simulated,
        facts={"Test subjects": 3},
        notes=["Missing: t2/random/n02"],
        tables=[Table("dice", "Dice", "how it was averaged", numbers, numbers)],
        savings=["60 % saved"],
        figures=[ReportFigure("Curves", "what they show", png)],
        subjects={"columns": [("t2", "random", 2)], "rows": [("sub-01", [0.25]), ("sub-02", [None])]},
        runs=runs,
        config_text="seed: 1",
    )
    page = path.read_text()
    for piece in ("tiny &amp; small", "1 &lt; 2", "x=&lt;y&gt;", "Missing: t2/random/n02", "60 % saved", "0.250",
                  "how it was averaged", "what they show", "seed: 1", "sub-02"):  # fmt: skip
        assert piece in page
    assert base64.b64encode(png.read_bytes()).decode() in page
    assert ("Simulated scans." in page) == is_simulated
