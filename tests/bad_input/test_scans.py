"""Scans that step 1 must refuse, one subject's file at a time, and a whole cohort of them under --keep-going."""

import shutil

import pytest

from tests.bad_input.harness import assert_lines, assert_refused, listing, run
from tests.bad_input.scans import CASES
from tests.cohort import save, volumes, write_cohort

SCRIPT = "generate_constraint_maps"


def spoilt_file(folder, name, subject):
    return folder / "data" / subject / ("t2.nii.gz" if name.endswith("_in_t2") else "t1.nii.gz")


@pytest.mark.parametrize("name", CASES)
def test_a_bad_scan_is_refused_before_anything_is_written(name, tmp_path):
    config = write_cohort(tmp_path)
    spoil, text = CASES[name]
    path = spoilt_file(tmp_path, name, "sub-2")
    spoil(path)
    assert_refused(tmp_path, SCRIPT, ["--config", config], [f"sub-2: {text}"], path=path)


def test_the_rest_of_a_cohort_of_bad_scans_is_processed(tmp_path):
    config = write_cohort(tmp_path)
    shutil.rmtree(tmp_path / "data" / "sub-2")
    expected = []
    for name, (spoil, text) in sorted(CASES.items()):
        for contrast, array in volumes(9).items():
            save(tmp_path / "data" / name / f"{contrast}.nii.gz", array)
        spoil(path := spoilt_file(tmp_path, name, name))
        expected.append(f"failed: {name}: {text.format(path=path)}".replace("{", "{{").replace("}", "}}"))
    outcome = run(SCRIPT, "--config", config, "--keep-going")
    assert outcome.code == 1 and outcome.said == []
    assert_lines([line for line in outcome.logged if line.startswith("failed: ")], expected)
    made = {str(path.relative_to(tmp_path / "work" / "constraint_maps")) for path in (tmp_path / "work").rglob("sub-*")}
    assert made == {f"{place}" for s in ("sub-1", "sub-3") for place in (f"{s}.nii.gz", f"qc/{s}.png")}
    assert not [path for path in listing(tmp_path) if ".tmp" in path]
