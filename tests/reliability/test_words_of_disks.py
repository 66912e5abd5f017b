"""Messages about full and read-only disks name the option of the script that the user typed."""

import errno
import os

import pytest

from tests.bad_input.harness import run
from tests.cohort import write_cohort
from tests.test_predict_segmentation import write_model, write_scan
from utils.disk import trouble_with_disk
from utils.runs import alone_in

ROOM = "and rerun the command; finished work is kept"
LINES = {
    errno.ENOSPC: f"no space left on device; free some space {ROOM}",
    errno.EDQUOT: f"disk quota exceeded; free some of your quota {ROOM}",
    errno.EROFS: "read-only file system; give {} that can be written",
    errno.EACCES: "permission denied; give {} in which you may write, or fix the permissions",
    errno.EPERM: "operation not permitted; give {} in which you may write, or fix the permissions",
}
SCRIPTS = {
    "predict": ("an --output", ["--model", "{}/model", "--input", "{}/scans", "--output", "{}/out"]),
    "tools.export_model": ("an --output", ["--model", "{}/model", "--output", "{}/out"]),
    "simulate_cohort": ("an --out", ["--out", "{}/out", "--subjects", "3", "--shape", "24", "20", "8"]),
    "tools.check_dataset": ("a --work-dir", ["--config", "{}/tiny.yaml"]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    write_model(folder / "model")
    write_scan(folder / "scans/sub-1/t1.nii.gz")
    write_cohort(folder)
    return folder


@pytest.mark.parametrize("number", LINES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_names_its_own_option(script, number, folder, monkeypatch):
    option, words = SCRIPTS[script]

    def fail(source, target):
        raise OSError(number, os.strerror(number), str(target))

    monkeypatch.setattr(os, "replace", fail)
    outcome = run(script, *(word.format(folder) for word in words))
    assert outcome.code == 2
    [line] = outcome.said
    assert line.startswith(f"{folder}/") and line.endswith(f": {LINES[number].format(option)}"), line


def test_a_second_simulation_in_a_folder_is_told_to_change_out(tmp_path):
    with alone_in(tmp_path):
        outcome = run("simulate_cohort", "--out", tmp_path, "--subjects", "3", "--shape", "24", "20", "8")
    assert outcome.code == 2 and outcome.said[0].endswith("wait until it has ended, or give another --out")


def test_other_errors_stay_what_they_are():
    assert trouble_with_disk(OSError(errno.EIO, "input/output error")) is None
    assert trouble_with_disk(ValueError("unable to write (errno = 28, error message = ...)")) == LINES[errno.ENOSPC]
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            raise KeyError("closed")
    except KeyError as error:
        assert trouble_with_disk(error) == LINES[errno.ENOSPC]
