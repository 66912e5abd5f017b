"""Full and read-only disks are reported in one line and leave nothing broken; the work dir may be on another disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.full_disk import STEPS

ROOT = Path(__file__).resolve().parents[2]
FULL = "no space left on device; free some space and rerun the command; finished work is kept"


def may_mount(folder):
    """Tell whether this user may mount a private file system."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def found(packed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk")
    if not may_mount(folder):
        pytest.skip("needs 'unshare -rm mount -t tmpfs', which is not permitted here")
    command = ["unshare", "-rm", sys.executable, "-m", "tests.reliability.full_disk", folder / "a", packed]
    quick = os.environ | {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env=quick, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_is_one_line_and_nothing_is_lost(step, found):
    tries = found[step]["tries"]
    for attempt in tries:
        assert attempt["code"] in (0, 2) and attempt["unfinished"] == [], attempt
        if attempt["code"] == 2:
            (line,) = attempt["said"]
            assert line.endswith(FULL)
    assert len(tries) >= 3 and tries[0]["code"] == tries[1]["code"] == 2
    assert found[step]["code"] == 0 and found[step]["differences"] == []


@pytest.mark.parametrize("step", STEPS)
def test_a_read_only_disk_is_one_line(step, found):
    assert found[step]["read_only"]["code"] == 2
    (line,) = found[step]["read_only"]["said"]
    assert "no permission to write in" in line


def test_the_work_dir_was_on_another_file_system_than_scans_and_temporary_files(found):
    data, work = found["devices"]
    assert data != work
