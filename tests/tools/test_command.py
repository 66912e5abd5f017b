"""The command of a tool: in its usage, in the record of a run, and by its earlier name at the root."""

import subprocess
import sys

import pytest

from tests.bad_input.harness import ROOT, run
from tests.cohort import write_cohort
from utils.environment import started_as


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("/suite/tools/doctor.py", ["python", "-m", "tools.doctor"]),
        ("/suite/predict.py", ["python", "predict.py"]),
        ("predict.py", ["python", "predict.py"]),
    ],
)
def test_a_script_knows_how_it_was_started(file, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [file, "--config", "x.yaml"])
    assert started_as() == words


def test_the_record_of_a_run_repeats_the_command(tmp_path):
    config = write_cohort(tmp_path)
    words = ["--config", config, "--clusters", "3", "--seeds", "1", "--subjects", "sub-1"]
    assert run("tools.evaluate_constraint_maps", *words).code == 0
    [line] = (tmp_path / "work/report/constraint_maps/command.txt").read_text().splitlines()
    assert line.startswith(f"python -m tools.evaluate_constraint_maps --config {config} ")


def test_an_earlier_name_works_from_any_folder_and_with_several_processes(tmp_path):
    config = write_cohort(tmp_path)
    command = [sys.executable, ROOT / "check_dataset.py", "--config", config, "--jobs", "2", "--pictures", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "wrote" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and (tmp_path / "work/check/subjects.csv").is_file()
