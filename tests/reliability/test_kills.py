"""A step killed at any moment and rerun gives the outputs of an undisturbed run.

With more kills, new processes and synthesis, as in docs/reliability.md:

    python -m tests.reliability.kills FOLDER --kills 20 --fresh && \
        python -m tests.reliability.equal FOLDER/whole FOLDER/killed
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cohort import STEPS, of_several_epochs, write_cohort
from tests.reliability.equal import differences

ROOT = Path(__file__).resolve().parents[2]
KILLED = [step for step in STEPS if step != "synthesis"]
KILLS = 3  # one in each third of a run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with two work dirs, `whole` and `killed`, and the record of the kills."""
    folder = tmp_path_factory.mktemp("kills")
    write_cohort(folder, **of_several_epochs() | {"synthesis": None})
    command = [sys.executable, "-m", "tests.reliability.kills", folder, "--kills", KILLS, "--steps", *KILLED]
    quick = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=quick, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("step", KILLED)
def test_a_killed_step_gives_the_outputs_of_an_undisturbed_one(step, folder):
    found = json.loads((folder / "kills.json").read_text())[step]
    assert len(found["kills"]) == KILLS and found["exit_code"] == 0
    assert all(0 <= moment <= found["seconds"] for moment in found["kills"])
    assert any((folder / "whole" / STEPS[step][1]).iterdir())
    assert differences(folder / "whole", folder / "killed", STEPS[step][1]) == []


def test_nothing_unfinished_is_left(folder):
    for pattern in (".tmp*", "checkpoint.npz"):
        assert list((folder / "killed").rglob(pattern)) == []


def test_a_difference_would_be_seen(folder, tmp_path):
    for one, other in (("a", "b"), ("c", "c")):
        for name, text in (("one", one), ("other", other)):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{one}.json").write_text(json.dumps({"dice": text, "duration_s": name}))
    (tmp_path / "one" / ".tmp-1-a").write_text("")
    assert differences(tmp_path / "one", tmp_path / "other") == [".tmp-1-a: only in one of both", "a.json: differs"]
