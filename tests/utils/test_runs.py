import json
import os
import signal
import subprocess
import sys
import time

import pytest

from utils.checks import InputError, check_axes
from utils.environment import environment, prepare_backend
from utils.runs import atomic_path, child_seed, exit_code_of, open_run, progress, read_json, write_json


def test_child_seeds_are_stable_and_differ_by_every_name():
    # A fixed number: seeds must not change between versions, or published runs could not be repeated.
    assert child_seed(2024, "weights", 0) == 3009555603
    names = [(1, "a"), (1, "b"), (2, "a"), (1, "a", 0), (1, "a", 1)]
    assert len({child_seed(*name) for name in names}) == len(names)
    assert all(0 <= child_seed(seed) < 2**32 for seed in range(50))


def test_atomic_path_leaves_a_complete_file_or_nothing(tmp_path):
    target = tmp_path / "deep" / "map.nii.gz"
    with atomic_path(target) as temporary:
        assert temporary.name.endswith(".nii.gz") and not target.exists()
        temporary.write_text("new")
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError, match="disk"), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert target.read_text() == "new" and os.listdir(target.parent) == ["map.nii.gz"]


def test_unfinished_files_of_ended_processes_are_removed_when_their_file_is_rewritten(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours, others = f".tmp-{ended.pid}-a.csv", f".tmp-{os.getppid()}-a.csv"
    for name in (ours, others, f".tmp-{ended.pid}-b-a.csv", ".tmp-mine-a.csv"):
        (tmp_path / name).write_text("half")
    with atomic_path(tmp_path / "a.csv") as temporary:
        temporary.write_text("whole")
    assert sorted(os.listdir(tmp_path)) == sorted([others, f".tmp-{ended.pid}-b-a.csv", ".tmp-mine-a.csv", "a.csv"])


def test_json_refuses_nan_and_names_broken_files(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": float("nan")})
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match="b.json: not readable as JSON"):
        read_json(tmp_path / "b.json")
    with pytest.raises(InputError, match="c.json: no such file"):
        read_json(tmp_path / "c.json")


def test_run_folder_says_how_the_result_was_made(tmp_path):
    with open_run(tmp_path / "run", {"seed": 3, "data": {"root": "x"}}, 3) as folder:
        record = json.loads((folder / "environment.json").read_text())
        assert record["seed"] == 3 and record["packages"]["numpy"] and "duration_s" not in record
        assert (folder / "command.txt").read_text().startswith("python ")
    assert json.loads((folder / "environment.json").read_text())["duration_s"] >= 0
    assert "root: x" in (folder / "resolved_config.yaml").read_text()


def test_environment_names_versions_and_commit():
    record = environment()
    assert {"python", "packages", "backend", "device", "git"} <= set(record)


def test_progress_yields_every_item_in_order():
    assert list(progress(iter([3, 1, 2]), "Counting", total=3)) == [3, 1, 2]


def test_check_axes_names_the_axis():
    check_axes("image", (4, 5, 6), "H W C", C=6)
    with pytest.raises(InputError, match=r"image: axis C of shape \(4, 5, 6\) is 6, expected 2"):
        check_axes("image", (4, 5, 6), "H W C", C=2)
    with pytest.raises(InputError, match="has 2 axes, expected 3"):
        check_axes("image", (4, 5), "H W C")


SCRIPT = """
import os, signal, sys, time
from utils.checks import InputError
from utils.runs import exit_code_of, progress

class Deaf:
    def __del__(self):  # Python drops what is raised here
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)

def main(arguments=None):
    how = sys.argv[1]
    if how == "mistake":
        raise InputError(["sub-01: 'flair' is missing", "sub-02: 'flair' is missing"])
    if how == "fault":
        raise KeyError("bug")
    if how == "wait":
        print("waiting", flush=True)
        time.sleep(30)
    if how == "lost":
        for number in progress(range(3), "Subjects"):
            if number == 1:
                Deaf()
            print(number, flush=True)
    return 1 if how == "some failed" else None

raise SystemExit(exit_code_of(main))
"""


@pytest.mark.parametrize(("how", "code"), [("good", 0), ("some failed", 1), ("mistake", 2), ("fault", 1)])
def test_exit_codes(how, code):
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    if how == "mistake":
        assert done.stderr.splitlines() == ["sub-01: 'flair' is missing", "sub-02: 'flair' is missing"]
    if how == "fault":
        assert "Traceback" in done.stderr and "KeyError: 'bug'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_script_says_how_to_continue(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, "wait"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # If a shell runs the tests in the background, they and their child processes ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "rerun the command to resume" in errors and "Traceback" not in errors


def test_an_interrupt_that_python_drops_stops_the_script_after_the_subject_at_hand():
    done = subprocess.run([sys.executable, "-c", SCRIPT, "lost"], capture_output=True, text=True, timeout=60)
    assert "Exception ignored" in done.stderr
    assert done.stdout.split() == ["0", "1"] and done.returncode == 130


def test_a_second_run_in_a_folder_is_refused_and_left_overs_of_a_killed_one_are_removed(tmp_path):
    (tmp_path / "run" / "predictions").mkdir(parents=True)
    (tmp_path / "run" / "predictions" / ".tmp-123-a.nii.gz").write_text("half")
    with open_run(tmp_path / "run", {}, 3):
        assert not list(tmp_path.rglob(".tmp-*"))
        with (
            pytest.raises(InputError, match=r"run: another run is active in this folder; wait"),
            open_run(tmp_path / "run", {}, 3),
        ):
            pass
    with open_run(tmp_path / "run", {}, 3):  # the lock ended with the first one
        pass


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "x", "a.h5"), "a.h5: no space left on device; free some space and rerun the command"),
        (
            OSError("Can't write data (file write failed: errno = 28, error message = 'x')"),
            "no space left on device; free",
        ),
        (OSError(30, "x", "runs/a"), "runs/a: read-only file system; give a --work-dir that can be written"),
        (PermissionError(13, "x", "runs/a"), "runs/a: permission denied; give a --work-dir in which you may write"),
    ],
)
def test_trouble_with_the_disk_is_one_line(error, line, capsys):
    def main(arguments):
        raise error

    assert exit_code_of(main) == 2
    found = capsys.readouterr().err
    assert found.startswith(line) and found.count("\n") == 1


@pytest.mark.parametrize(("number", "code"), [(28, 2), (122, 2), (13, 1), (5, 1)])
def test_only_a_full_disk_is_looked_for_behind_another_error(number, code, capsys):
    def main(arguments):
        try:
            raise OSError(number, "x", "a.pdf")
        finally:
            raise AttributeError("cannot be closed")

    assert exit_code_of(main) == code
    found = capsys.readouterr().err
    assert found.startswith("a.pdf: ") and "rerun the command" in found if code == 2 else "Traceback" in found


def test_other_errors_of_the_system_are_reported_in_full(capsys):
    def main(arguments):
        raise OSError(5, "Input/output error", "a.h5")

    assert exit_code_of(main) == 1
    assert "Traceback" in capsys.readouterr().err


def test_tensorflow_reuses_memory_unless_the_user_decides_otherwise(monkeypatch):
    names = "TF_CPP_MIN_LOG_LEVEL", "TF_CPU_ALLOCATOR_USE_BFC", "TF_CPU_BFC_MEM_LIMIT_IN_MB"
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert exit_code_of(lambda _: 0) == 0
    level, is_reused, most_mb = (os.environ[name] for name in names)
    assert (level, is_reused) == ("3", "true") and int(most_mb) > 1000
    monkeypatch.setenv("TF_CPU_ALLOCATOR_USE_BFC", "false")
    prepare_backend()
    assert os.environ["TF_CPU_ALLOCATOR_USE_BFC"] == "false"
