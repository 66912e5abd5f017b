"""The cohort on disk: complete, resumable, independent of the number of processes."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

import simulate_cohort
from data.simulation.subjects import ANATOMIES
from utils.checks import InputError

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--shape", "24", "20", "8", "--seed", "3"]


def make(folder, subjects, *options):
    simulate_cohort.main(["--out", str(folder), "--subjects", str(subjects), *SMALL, *options])


def values(folder):
    return {
        str(path.relative_to(folder)): np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.rglob("*.gz"))
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "scans"
    make(folder, 4)
    return folder


def test_files_of_a_cohort(cohort):
    for subject in ("sub-001", "sub-004"):
        names = {path.name.removesuffix(".nii.gz") for path in (cohort / subject).iterdir()}
        assert names == {*ANATOMIES["renal"].protocol, "label", "true_t1", "true_t2", "true_pd", "true_tissue"}
    image = nibabel.load(cohort / "sub-001" / "t2_echoes.nii.gz")
    assert image.shape == (24, 20, 8, 4) and image.get_data_dtype() == np.int16
    assert nibabel.load(cohort / "sub-001" / "label.nii.gz").get_data_dtype() == np.uint8
    assert image.header.get_xyzt_units()[0] == "mm" and nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    np.testing.assert_allclose(image.header.get_zooms()[:3], [16, 16, 18])
    assert not list(cohort.glob(".tmp*"))


def test_the_folder_says_that_it_is_simulated(cohort):
    assert (cohort / "README").read_text().startswith("SIMULATED")
    rows = [line.split("\t")[:2] for line in (cohort / "dseg.tsv").read_text().splitlines()[2:]]
    assert {name: int(number) for number, name in rows} == ANATOMIES["renal"].labels
    description = json.loads((cohort / "dataset_description.json").read_text())
    assert description["simulated"] is True and description["Name"].startswith("SIMULATED")
    assert (description["anatomy"], description["seed"], description["shape"]) == ("renal", 3, [24, 20, 8])


def test_splits_hold_every_subject_once_and_participants_their_volumes(cohort):
    sets = json.loads((cohort / "splits.json").read_text())
    assert list(sets) == ["train", "val", "test"] and all(sets.values())
    assert sorted(sum(sets.values(), [])) == [f"sub-00{number}" for number in range(1, 5)]
    head, *rows = [line.split("\t") for line in (cohort / "participants.tsv").read_text().splitlines()]
    assert head == ["participant_id", "set", "right_kidney_ml", "left_kidney_ml", "liver_ml", "spleen_ml"]
    label = nibabel.load(cohort / rows[0][0] / "label.nii.gz")
    voxel_ml = np.prod(label.header.get_zooms()) / 1000
    assert float(rows[0][4]) == pytest.approx((np.asarray(label.dataobj) == 3).sum() * voxel_ml, abs=0.06)


@pytest.mark.parametrize(("number", "sizes"), [(3, (1, 1, 1)), (18, (12, 2, 4)), (100, (63, 12, 25))])
def test_sizes_of_the_sets(number, sizes):
    assert tuple(map(len, simulate_cohort.split([str(index) for index in range(number)]).values())) == sizes


def test_the_liver_is_on_the_right_by_the_affine(cohort):
    label = nibabel.load(cohort / "sub-002" / "label.nii.gz")
    voxels = np.asarray(label.dataobj)
    sides = {
        value: nibabel.affines.apply_affine(label.affine, np.argwhere(voxels == value))[:, 0] for value in (1, 2, 3)
    }
    assert sides[1].mean() > 20 and sides[3].mean() > 20 and sides[2].mean() < -20


def test_processes_do_not_change_the_result(cohort, tmp_path):
    make(tmp_path / "parallel", 4, "--jobs", "2")
    serial, parallel = values(cohort), values(tmp_path / "parallel")
    assert serial.keys() == parallel.keys()
    for name, voxels in serial.items():
        np.testing.assert_array_equal(voxels, parallel[name], err_msg=name)


def test_finished_subjects_are_kept_and_missing_ones_made(cohort, tmp_path):
    folder = tmp_path / "grown"
    make(folder, 3)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    (folder / ".tmp-left" / "sub-004").mkdir(parents=True)  # left by a killed run, not a subject
    make(folder, 4)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    one, other = values(cohort)["sub-004/t1w.nii.gz"], values(folder)["sub-004/t1w.nii.gz"]
    np.testing.assert_array_equal(one, other)


def test_an_interrupted_subject_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    monkeypatch.setattr("data.scans.volumes.write_nifti", fail)
    with pytest.raises(KeyboardInterrupt):
        make(folder, 3)
    assert [path.name for path in folder.iterdir()] == ["dataset_description.json"]


def test_cohorts_are_not_mixed(cohort, tmp_path):
    with pytest.raises(InputError, match="holds a cohort with seed 3, not 9; choose another --out"):
        simulate_cohort.main(["--out", str(cohort), "--subjects", "4", *SMALL[:-1], "9"])
    (tmp_path / "scan.nii").touch()
    with pytest.raises(InputError, match="holds other files"):
        make(tmp_path, 4)


def test_too_few_subjects():
    with pytest.raises(InputError, match="--subjects 2: expected at least 3"):
        simulate_cohort.main(["--out", "nowhere", "--subjects", "2"])


def test_the_command_line_offers_every_anatomy():
    for name in ANATOMIES:
        assert simulate_cohort.parse(["--out", "x", "--anatomy", name]).anatomy == name


def test_a_mistake_exits_with_2_and_one_line(tmp_path):
    command = [sys.executable, "simulate_cohort.py", "--out", tmp_path / "x", "--shape", "4", "4", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "--shape 4 4 4: expected X Y Z of at least 8 8 2 voxels\n"
    assert not (tmp_path / "x").exists()
