"""A second run in a work dir is refused while the first is active, and does not redo finished work."""

import shutil

import pytest

from tests.bad_input.harness import assert_refused, run
from tests.cohort import FIRST_FOUR
from utils.runs import alone_in

pytestmark = pytest.mark.usefixtures("uncompiled")
CELL = "finetuning/t1/random/n01/r0"
PLACES = dict(zip(FIRST_FOUR, ("constraint_maps", "h5", "pretraining/global", CELL), strict=True))
PLACES["reproduce_tables"] = "report"


def test_no_checkpoint_is_left_beside_a_finished_result(finished):
    assert len(list((finished / "work").rglob("weights.npz"))) == 3
    assert list((finished / "work").rglob("checkpoint.npz")) == []


@pytest.fixture
def work(finished, tmp_path):
    shutil.copytree(finished / "work", tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("step", PLACES)
def test_a_second_run_is_refused_and_disturbs_nothing(step, finished, work):
    place = work / PLACES[step]
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    words = ["--config", finished / "tiny.yaml", "--work-dir", work]
    line = f"{place}: another run is active in this folder; wait until it has ended, or give another --work-dir"
    with alone_in(place):
        assert_refused(work, step, words, [line])
    if step == "generate_constraint_maps":
        assert run(step, *words).code == 0  # the lock ended with the first run


@pytest.mark.parametrize("step", PLACES)
def test_a_second_run_that_is_to_redo_all_removes_nothing(step, finished, work):
    words = ["--config", finished / "tiny.yaml", "--work-dir", work]
    if step == "reproduce_tables":  # always redoes everything
        assert run(step, *words).code == 0
    else:
        words.append("--overwrite")
    place = work / PLACES[step]
    line = f"{place}: another run is active in this folder; wait until it has ended, or give another --work-dir"
    with alone_in(place):
        assert_refused(work, step, words, [line])


def test_a_cell_that_another_run_finished_meanwhile_is_not_redone(finished, work, monkeypatch):
    from training.grid import Grid

    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.suffix in (".npz", ".json", ".yaml")}
    check = Grid.check

    def check_early(grid, cells, *options):  # as if nothing had been finished then
        failures = check(grid, cells, *options)
        assert grid.todo == []
        grid.todo = cells
        return failures

    monkeypatch.setattr(Grid, "check", check_early)
    assert run(FIRST_FOUR[3], "--config", finished / "tiny.yaml", "--work-dir", work).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]], ids=["skipped", "redone"])
@pytest.mark.parametrize("step", FIRST_FOUR[2:])
def test_a_checkpoint_beside_a_finished_result_goes_and_is_not_resumed(step, overwrite, finished, work):
    """A kill between writing the result and the end of the run leaves the checkpoint behind."""
    left_over = work / PLACES[step] / "checkpoint.npz"
    left_over.write_bytes(b"resuming from this would be refused")
    assert run(step, "--config", finished / "tiny.yaml", "--work-dir", work, *overwrite).code == 0
    assert not left_over.exists()


def test_unfinished_subjects_of_a_killed_simulation_are_removed(tmp_path):
    words = ["--out", tmp_path / "scans", "--subjects", "3", "--shape", "40", "32", "6"]
    assert run("simulate_cohort", *words).code == 0
    unfinished = tmp_path / "scans" / ".tmp-abc" / "sub-002"
    unfinished.mkdir(parents=True)
    (unfinished / "t1w.nii.gz").write_bytes(b"half")
    assert run("simulate_cohort", *words).code == 0
    assert not list((tmp_path / "scans").glob(".tmp*"))
