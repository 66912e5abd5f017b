"""python -m tools.check_dataset: the table, the montage and the list of problems."""

import csv

import numpy as np
import yaml

from tests.layouts import AFFINE, corner, ramp, save, write_brats, write_chaos, write_msd
from tools import check_dataset
from utils.checks import InputError


def run(tmp_path, data, *words):
    """Run the script; returns the rows of its table and the lines of its error."""
    data = {"root": str(tmp_path / "scans"), "splits": {"train": 1, "val": 1, "test": 1}} | data
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"name": "config", "work_dir": str(tmp_path / "work"), "data": data})
    )
    lines = []
    try:
        assert check_dataset.main(["--config", str(tmp_path / "config.yaml"), *words]) is None
    except InputError as error:
        lines = error.lines
    table = tmp_path / "work/check/subjects.csv"
    with table.open(newline="") if table.exists() else open("/dev/null") as file:
        return {row.pop("subject"): row for row in csv.DictReader(file)}, lines


BRATS = {"layout": "brats", "contrasts": ["t1gd", "flair"], "labels": ["necrosis", "oedema", "enhancing"]}


def test_a_sound_data_set(tmp_path, capsys):
    for number in range(3):
        write_brats(tmp_path / "scans", f"BraTS2021_{number:05d}", False, values=[1, 2, 4] if number else [1, 0, 4])
    rows, problems = run(tmp_path, BRATS)
    assert problems == []
    assert list(rows) == ["BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002"]
    # 12 voxels of 1.5 x 1 x 2 mm are 0.036 mL.
    assert rows["BraTS2021_00001"] == {
        "contrasts": "t1gd flair",
        "grid": "9 x 8 x 7",
        "voxel, mm": "1.5 x 1 x 2",
        "axes": "LPS",
        "necrosis, mL": "0.04",
        "oedema, mL": "0.04",
        "enhancing, mL": "0.04",
        "warnings": "",
    }
    assert rows["BraTS2021_00000"]["warnings"] == "no oedema"
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:2] == ["subject", "contrasts"] and len(printed) == 5
    assert (tmp_path / "work/check/montage.png").stat().st_size > 10_000
    rows, _ = run(tmp_path, BRATS | {"voxel_size_known": False})
    assert rows["BraTS2021_00001"]["enhancing, voxels"] == "12"


def test_problems_follow_the_table(tmp_path):
    for number in range(4):
        write_brats(tmp_path / "scans", f"BraTS2021_{number:05d}", False, values=[1, 2, 3] if number == 2 else None)
    folder = tmp_path / "scans"
    (folder / "BraTS2021_00000/BraTS2021_00000_t1ce.nii.gz").unlink()
    save(folder / "BraTS2021_00001/BraTS2021_00001_flair.nii.gz", ramp(shape=(9, 8, 6)))
    rows, problems = run(tmp_path, BRATS)
    assert [row["warnings"] for row in rows.values()] == ["1 to fix", "1 to fix", ""]
    missing, grid, value = problems
    assert missing.startswith("BraTS2021_00000: contrast 't1gd' is missing: no file")
    assert "flair.nii.gz' is (9, 8, 6) but 'BraTS2021_00001_t1ce.nii.gz' is (9, 8, 7)" in grid
    assert "set data.resample_to" in grid
    assert "holds the values 3, which data.labels does not name" in value


def test_every_voxel_is_read_on_demand_only(tmp_path):
    for number in range(3):
        write_brats(tmp_path / "scans", f"BraTS2021_{number:05d}", False)
    broken = ramp()
    broken[3, 2, 1] = np.nan
    save(tmp_path / "scans/BraTS2021_00001/BraTS2021_00001_flair.nii.gz", broken)
    assert run(tmp_path, BRATS, "--pictures", "1")[1] == []
    [line] = run(tmp_path, BRATS, "--whole", "--pictures", "1")[1]
    assert "BraTS2021_00001_flair.nii.gz' has 1 voxel that is NaN" in line


def test_contrasts_of_chaos_on_two_grids(tmp_path):
    for name in ("1", "2", "3"):
        write_chaos(tmp_path / "scans", name)
    data = {"layout": "chaos", "contrasts": ["t1in", "t2spir"], "labels": ["liver", "right_kidney"]}
    data["ignored_label_values"] = ["left_kidney", "spleen"]
    rows, problems = run(tmp_path, data)
    assert len(problems) == 3 and all("set data.resample_to" in line for line in problems)
    rows, problems = run(tmp_path, data | {"resample_to": "t1in"})
    assert problems == [] and rows["2"]["grid"] == "20 x 16 x 7"
    rows, problems = run(tmp_path, data | {"resample_to": "t2spir"}, "--whole")
    assert problems == [] and rows["2"]["grid"] == "10 x 8 x 7" and rows["2"]["liver, mL"] != "-"


def test_msd_and_a_series(tmp_path):
    write_msd(tmp_path / "scans")
    data = {"layout": "msd", "contrasts": {"t2": "T2"}, "labels": {"zone": ["PZ", "TZ"]}, "test_images": True}
    rows, problems = run(tmp_path, data)
    assert rows["prostate_03"]["warnings"] == "no label" and rows["prostate_03"]["zone, mL"] == "-"
    assert problems == [
        "data.splits: train 1 + val 1 + test 1 = 3 labelled subjects requested, but 2 of 3 subjects have a file that "
        "data.label names; choose smaller numbers, or correct data.label"
    ]
    save(tmp_path / "scans/imagesTr/prostate_00.nii.gz", ramp())
    [line] = run(tmp_path, data)[1]
    assert "prostate_00.nii.gz' is (9, 8, 7), expected 4 axes, the last of 2 volumes" in line


def test_sessions_and_what_is_unlike_most(tmp_path):
    for number in range(6):
        name = f"sub-{number // 2}_ses-{number % 2}"
        place = tmp_path / "scans" / f"sub-{number // 2}/ses-{number % 2}/anat"
        affine = AFFINE @ np.diag([2 if number == 4 else 1, 1, 1, 1])
        if number == 5:
            affine = np.diag([1.5, 1, 2, 1.0])
        save(place / f"{name}_T1w.nii.gz", ramp(number), affine)
        label = np.pad(corner([1]), 12) if number == 3 else corner([1])
        save(
            tmp_path / "scans/derivatives/d" / place.relative_to(tmp_path / "scans") / f"{name}_dseg.nii.gz",
            label,
            affine,
        )
    data = {"layout": "bids", "contrasts": ["T1w"], "label": "derivatives/d/dseg", "labels": {"a": [1]}}
    rows, problems = run(tmp_path, data)
    assert [row["person"] for row in rows.values()] == ["sub-0", "sub-0", "sub-1", "sub-1", "sub-2", "sub-2"]
    assert rows["sub-2_ses-0"]["warnings"] == "voxel size unlike most"
    assert rows["sub-2_ses-1"]["warnings"] == "orientation RAS, most are LPS"
    assert len(problems) == 1 and "sub-1_ses-1_dseg.nii.gz' is (33, 32, 31) but" in problems[0]


def test_a_dataset_without_subjects(tmp_path):
    (tmp_path / "scans").mkdir()
    rows, [line] = run(tmp_path, BRATS)
    assert not rows and "scans' matches '{subject}_t1ce.nii.gz or {subject}-t1c.nii.gz'" in line
