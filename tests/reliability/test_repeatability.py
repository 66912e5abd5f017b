"""Equal seeds give equal tables to the last digit, other seeds differ; nothing depends on clocks."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input.harness import assert_refused, run
from tests.cheaply import steps_uncompiled
from tests.cohort import FIRST_FOUR
from tests.reliability.equal import differences

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("data", "evaluation", "losses", "models", "tools", "training", "utils")
SOURCES = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
TRAIN = FIRST_FOUR[2:]
RECORDS_THE_DATE = ("environment.py", "page.py")


def first_four(folder, work, *words, switch=()):
    """Run steps 1 to 4 in a work dir; the training steps get `switch`."""
    with steps_uncompiled():
        for step in FIRST_FOUR:
            more = switch if step in TRAIN else ()
            outcome = run(step, "--config", folder / "tiny.yaml", "--work-dir", work, *more, *words)
            assert outcome.code == 0, outcome.said
    return work


def tables_of(finished, work, folder):
    """Return the texts of all tables in a work dir."""
    from evaluation.scores.scores import read_scores
    from reproduce_tables import make_tables
    from utils.config.load import load_config

    make_tables(load_config(finished / "tiny.yaml", work_dir=work), read_scores(work), folder)
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if "durations" not in path.name}


def without_times(scores):
    """Return the rows of scores.csv without the columns for durations."""
    rows = list(csv.DictReader(io.StringIO(scores)))
    return [{key: value for key, value in row.items() if key not in ("duration_s", "compile_s")} for row in rows]


def test_the_same_seed_gives_the_same_tables_to_the_last_digit_and_another_one_others(finished, tmp_path):
    # In a separate process, because the switch cannot be undone.
    code = "import sys, pathlib; from tests.reliability.test_repeatability import first_four; "
    code += "first_four(*map(pathlib.Path, sys.argv[1:]), switch=['--deterministic'])"
    command = [sys.executable, "-c", code, finished, tmp_path / "again"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert differences(finished / "work", tmp_path / "again") == []  # the switch has no effect on a CPU
    record = json.loads((tmp_path / "again/finetuning/t1/random/n01/r0/environment.json").read_text())
    assert record["deterministic"] is True and record["device"] == "cpu"

    first_four(finished, tmp_path / "other", "--set", "seed=4")
    works = {"one": finished / "work", "again": tmp_path / "again", "other": tmp_path / "other"}
    one, again, other = (tables_of(finished, work, tmp_path / f"tables_{name}") for name, work in works.items())
    scores = [without_times(tables.pop("scores.csv")) for tables in (one, again, other)]
    assert one == again and scores[0] == scores[1]
    assert [row["subject"] for row in scores[0]] == [row["subject"] for row in scores[2]]
    assert [row["dice"] for row in scores[0]] != [row["dice"] for row in scores[2]]
    assert "dice.csv" in one and one["dice.csv"] != other["dice.csv"]


@pytest.mark.parametrize("moment", [0, 4_000_000_000], ids=["1970", "2096"])
def test_file_dates_in_the_past_or_future_do_not_matter(moment, finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished / "work", work)
    for path in work.rglob("*"):
        os.utime(path, (moment, moment))
    before = {path: path.read_bytes() for path in work.rglob("*") if path.suffix in (".gz", ".h5", ".npz")}
    first_four(finished, work)
    assert {path: path.read_bytes() for path in before} == before
    assert all(path.stat().st_mtime == moment for path in before)


def test_no_decision_depends_on_a_clock():
    """Durations are measured with a monotonic clock; the date is only recorded."""
    for path in SOURCES:
        clocks = re.findall(r"st_mtime|getmtime|time\.time\(|datetime\.now|utcnow", path.read_text())
        assert clocks == ["datetime.now"] * (path.name in RECORDS_THE_DATE), path


CURE = "give --overwrite, or another --work-dir"
CHANGED = [
    (
        "generate_constraint_maps",
        "constraint_maps.clusters=4",
        "{work}/constraint_maps/summary.csv: 3 maps (sub-1, sub-2, sub-3) were made with other contrasts, settings or "
        "seed than the config has now; make them again with generate_constraint_maps.py --overwrite, or give another "
        "--work-dir",
    ),
    (
        "generate_h5_pretraining",
        "slices.min_foreground=0.1",
        "{work}/h5/pretrain_train.h5: made with another config; make it again with generate_h5_pretraining.py "
        "--overwrite, or give another --work-dir",
    ),
    (
        "constrained_contrastive_learning",
        "pretraining.stages.global.temperature=0.3",
        f"{{work}}/pretraining/global: made with another config; {CURE}",
    ),
    (
        "finetune_segmentation",
        "finetuning.training.learning_rate=0.01",
        f"{{work}}/finetuning/t1/random/n01/r0: made with another config; {CURE}",
    ),
]


@pytest.mark.parametrize(("step", "change", "line"), CHANGED, ids=[step for step, _, _ in CHANGED])
def test_a_changed_config_is_refused_and_redone_only_when_asked(step, change, line, finished, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished / "work", work)
    words = ["--config", finished / "tiny.yaml", "--work-dir", work, "--set", change]
    assert_refused(work, step, words, [line], work=work)
    with steps_uncompiled():
        assert run(step, *words, "--overwrite").code == 0
    assert run(step, *words).code == 0
