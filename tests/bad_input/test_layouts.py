"""Folders in which the location of the scans is unclear."""

import os
import shutil

import pytest

from tests.bad_input.harness import assert_lines, assert_refused, run
from tests.cohort import write_cohort


def scan(data):
    return data / "sub-2" / "t1.nii.gz"


def replace_by(make):
    def spoil(data):
        scan(data).unlink()
        make(scan(data))

    return spoil


def add_uncompressed(data):
    (data / "sub-2" / "t1.nii").write_bytes(b"an older export")


def add_copy(name):
    return lambda data: shutil.copytree(data / "sub-2", data / name)


MISSING = "'; add it, or remove the subject from the folder"
TWICE = "'SUB-2' and 'sub-2' differ in upper and lower case only; rename all but one"
CASES = {
    "absent file": (
        lambda data: scan(data).unlink(),
        ["sub-2: contrast 't1' is missing: no file '{data}/sub-2/t1.nii.gz" + MISSING],
    ),
    "link to nowhere": (
        replace_by(lambda path: path.symlink_to("/nowhere/t1.nii.gz")),
        ["sub-2: '{data}/sub-2/t1.nii.gz' is a link to '/nowhere/t1.nii.gz', which does not exist; fix the link"],
    ),
    "link to itself": (
        replace_by(lambda path: path.symlink_to(path.name)),
        ["sub-2: '{data}/sub-2/t1.nii.gz' is a link to 't1.nii.gz', which does not exist; fix the link"],
    ),
    "folder instead of a file": (
        replace_by(lambda path: path.mkdir()),
        ["sub-2: '{data}/sub-2/t1.nii.gz' is a folder; put the scan in its place"],
    ),
    "pipe instead of a file": (
        replace_by(os.mkfifo),
        ["sub-2: '{data}/sub-2/t1.nii.gz' is not a regular file; put the scan in its place"],
    ),
    "nii beside nii.gz": (
        add_uncompressed,
        ["sub-2: 't1.nii' lies beside '{data}/sub-2/t1.nii.gz'; keep the one that holds the scan, move the other away"],
    ),
    "names that differ in case": (add_copy("SUB-2"), [f"SUB-2: {TWICE}", f"sub-2: {TWICE}"]),
    "line break in a name": (
        add_copy("sub\n2"),
        ["'sub\\n2': has characters that cannot be printed; rename it in '{data}'"],
    ),
}
PATTERNS = {
    "two files match": (
        "{subject}/t*.nii.gz",
        "<any>: 2 files match '{{subject}}/t*.nii.gz' (t1.nii.gz, t2.nii.gz); narrow the pattern",
        3,
    ),
    "both extensions match": (
        "{subject}/t1.nii*",
        "sub-2: 2 files match '{{subject}}/t1.nii*' (t1.nii, t1.nii.gz); narrow the pattern",
        1,
    ),
    "no subject in it": (
        "t1.nii.gz",
        "pattern 't1.nii.gz' has no '{{subject}}'; write for instance '{{subject}}/flair.nii.gz'",
        1,
    ),
    "absolute": ("/etc/{subject}", "pattern '/etc/{{subject}}' begins with '/'; patterns are below data.root", 1),
    "nothing matches": (
        "{subject}/flair.nii.gz",
        "<any>: contrast 't1' is missing: no file '{data}/<any>/flair.nii.gz" + MISSING,
        3,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_unclear_folder_is_refused(name, tmp_path):
    config, data = write_cohort(tmp_path), tmp_path / "data"
    spoil, expected = CASES[name]
    spoil(data)
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], expected, data=data)


@pytest.mark.parametrize("name", ["link to nowhere", "names that differ in case", "nii beside nii.gz"])
def test_the_others_are_processed(name, tmp_path):
    config, data = write_cohort(tmp_path), tmp_path / "data"
    spoil, expected = CASES[name]
    spoil(data)
    outcome = run("generate_constraint_maps", "--config", config, "--keep-going")
    assert outcome.code == 1
    failed = [line.removeprefix("failed: ") for line in outcome.logged if line.startswith("failed: ")]
    assert_lines(failed, expected, data=data)
    made = sorted(path.name for path in (tmp_path / "work" / "constraint_maps").glob("*.nii.gz"))
    assert made == ["sub-1.nii.gz", "sub-3.nii.gz"]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_that_does_not_fit_is_refused(name, tmp_path):
    config, data = write_cohort(tmp_path), tmp_path / "data"
    pattern, expected, count = PATTERNS[name]
    if name == "both extensions match":
        add_uncompressed(data)
    words = ["--config", config, "--set", f"data.contrasts.t1='{pattern}'"]
    assert_refused(tmp_path, "generate_constraint_maps", words, [expected] * count, data=data)


def test_a_subject_whose_only_scan_is_a_link_to_nowhere_is_not_overlooked(tmp_path):
    config, data = write_cohort(tmp_path), tmp_path / "data"
    for name in ("t1", "t2", "label"):
        (data / "sub-2" / f"{name}.nii.gz").unlink()
    scan(data).symlink_to("/nowhere/t1.nii.gz")
    lines = [
        CASES["link to nowhere"][1][0],
        "sub-2: contrast 't2' is missing: no file '{data}/sub-2/t2.nii.gz" + MISSING,
    ]
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], lines, data=data)
