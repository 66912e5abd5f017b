"""Scans, label maps and masks that change between two steps, or between two cells of a table."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from tests.bad_input.harness import assert_refused, listing, run
from tests.cohort import CONFIG, FIRST_FOUR, MODEL, of_several_epochs, write_cohort, write_config

pytestmark = pytest.mark.usefixtures("uncompiled")
MAPS, SLICES, _, CELLS = FIRST_FOUR


def change(path):
    """Change one voxel of a file, within 0 to 1 if all values are."""
    image = nibabel.load(path)
    array = np.asarray(image.dataobj).copy()
    array[8, 7, 2] = 1 - array[8, 7, 2] if array.max() == 1 else array[8, 7, 2] + 1
    nibabel.save(nibabel.Nifti1Image(array, image.affine), path)


def after(steps, folder, **sections):
    config = write_cohort(folder, **sections)
    for step in steps:
        outcome = run(step, "--config", config)
        assert outcome.code == 0, outcome.said
    return config


MADE_OTHERWISE = "changed since the constraint map was made; make it again: generate_constraint_maps.py --overwrite"


@pytest.mark.parametrize("names", [["t1"], ["t2"], ["mask"], ["t1", "mask"]])
def test_step_2_notices_scans_and_masks_that_changed_since_step_1(tmp_path, names):
    data = CONFIG["data"] | {"root": str(tmp_path / "data"), "mask": "{subject}/mask.nii.gz"}
    config = after([MAPS], tmp_path, data=data)
    files = [tmp_path / f"data/sub-2/{name}.nii.gz" for name in sorted(names)]
    for path in files:
        change(path)
    (tmp_path / "data/sub-3/t1.nii.gz").touch()  # dates do not matter
    shown = ", ".join(f"'{path}'" for path in sorted(files, key=lambda path: path.name))
    line = f"sub-2: {shown} {MADE_OTHERWISE} --subjects sub-2"
    assert_refused(tmp_path, SLICES, ["--config", config], [line])
    short = f"{', '.join(sorted(names))} changed since its constraint map was made; make it again: --overwrite"
    assert_refused(tmp_path, MAPS, ["--config", config], [f"sub-2: {short} --subjects sub-2"])
    assert run(MAPS, "--config", config, "--overwrite", "--subjects", "sub-2").code == 0
    assert run(SLICES, "--config", config).code == 0


def test_a_contrast_that_maps_do_not_see_may_change_before_step_2(tmp_path):
    contrasts = CONFIG["data"]["contrasts"] | {"t3": "{subject}/t3.nii.gz"}
    data = CONFIG["data"] | {"root": str(tmp_path / "data"), "contrasts": contrasts}
    write_cohort(tmp_path)
    for subject in ("sub-1", "sub-2", "sub-3"):
        shutil.copy(tmp_path / f"data/{subject}/t2.nii.gz", tmp_path / f"data/{subject}/t3.nii.gz")
    config = write_config(tmp_path, data=data)
    assert run(MAPS, "--config", config).code == 0
    change(tmp_path / "data/sub-2/t3.nii.gz")
    assert run(SLICES, "--config", config).code == 0


def test_maps_from_before_files_were_noted_are_taken(tmp_path):
    config = after([MAPS], tmp_path)
    table = tmp_path / "work/constraint_maps/summary.csv"
    lines = [line.rpartition(",")[0] for line in table.read_text().splitlines()]
    assert table.read_text().splitlines()[0].endswith(",files")
    table.write_text("\n".join(lines) + "\n")
    change(tmp_path / "data/sub-2/t1.nii.gz")
    assert run(SLICES, "--config", config).code == 0


@pytest.fixture
def trained(finished, tmp_path):
    """Return a copy of scans and work dir after four steps, to be changed."""
    for name in ("data", "work"):
        shutil.copytree(finished / name, tmp_path / name)
    return write_config(tmp_path)


@pytest.mark.parametrize("name", ["t2", "mask"])
def test_synthesis_refuses_references_and_masks_that_changed(tmp_path, name):
    data = CONFIG["data"] | {"root": str(tmp_path / "data"), "mask": "{subject}/mask.nii.gz"}
    sections = {key: of_several_epochs()[key] for key in ("crops", "synthesis")}
    config = after([MAPS, SLICES], tmp_path, data=data, **sections)
    path = tmp_path / f"data/sub-3/{name}.nii.gz"
    before = path.read_bytes()
    change(path)
    assert_refused(tmp_path, "finetune_synthesis", ["--config", config], [changed_reference(path)])
    path.write_bytes(before)
    change(tmp_path / "data/sub-3/t1.nii.gz")  # an input, which was packed
    assert run("finetune_synthesis", "--config", config).code == 0


def changed_reference(path):
    cure = "restore it, or run generate_h5_pretraining.py --overwrite and the steps after it again"
    text = "changed since step 2 packed it, so that scores and training would have different references"
    return f"sub-3: '{path}' {text}; {cure}"


def test_step_4_refuses_a_reference_that_changed_before_it_trains(trained, tmp_path):
    label, words = tmp_path / "data/sub-3/label.nii.gz", ["--config", trained, "--init", "random"]
    shutil.rmtree(tmp_path / "work/finetuning/t1/random")
    change(label)
    assert_refused(tmp_path, CELLS, words, [changed_reference(label)])
    assert run(SLICES, "--config", trained, "--overwrite").code == 0
    assert run(CELLS, *words).code == 0


@pytest.mark.parametrize("name", ["t1", "label"])
def test_step_2_keeps_no_file_of_scans_that_changed(trained, tmp_path, name):
    """The change is in a training subject, whose label step 4 does not read again."""
    change(tmp_path / f"data/sub-1/{name}.nii.gz")
    if name == "t1":
        assert run(MAPS, "--config", trained, "--overwrite", "--subjects", "sub-1").code == 0
    line = f"sub-1: {name} changed since step 2 packed it; give --overwrite, or another --work-dir"
    assert_refused(tmp_path, SLICES, ["--config", trained], [line])
    assert run(SLICES, "--config", trained, "--overwrite").code == 0
    assert run(SLICES, "--config", trained).code == 0


def test_measures_of_maps_are_made_again_of_a_label_that_changed(tmp_path):
    config = after([MAPS], tmp_path)
    words = ["--config", config, "--clusters", "3", "--seeds", "2"]
    assert run("tools.evaluate_constraint_maps", *words).code == 0
    assert "3 of 3 subjects finished before, skipped" in run("tools.evaluate_constraint_maps", *words).logged
    change(tmp_path / "data/sub-2/label.nii.gz")
    assert "2 of 3 subjects finished before, skipped" in run("tools.evaluate_constraint_maps", *words).logged


def test_a_reference_whose_file_only_looks_different_is_taken(trained, tmp_path):
    shutil.rmtree(tmp_path / "work/finetuning/t1/random")
    path = tmp_path / "data/sub-3/label.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj).astype(np.float32), image.affine), path)
    assert run(CELLS, "--config", trained, "--init", "random").code == 0


def test_step_5_refuses_two_references_of_one_subject_and_label(trained, tmp_path):
    cells = [tmp_path / "work/finetuning/t1" / init / "n01/r0" for init in ("global", "random")]
    contents = [json.loads((cell / "metrics.json").read_text()) for cell in cells]
    rows = [content["per_subject"][0] for content in contents]
    assert rows[0]["volume_ml_reference"] == rows[1]["volume_ml_reference"]
    for cell, content, row in zip(cells, contents, rows, strict=True):
        row["voxels_reference"] = 64  # as without a voxel size
        (cell / "metrics.json").write_text(json.dumps(content))
    for key, change_by in (("volume_ml_reference", 0.1), ("voxels_reference", 2)):
        known = rows[1][key]
        rows[1][key] = known + change_by
        (cells[1] / "metrics.json").write_text(json.dumps(contents[1]))
        before = listing(tmp_path)
        outcome = run("reproduce_tables", "--config", trained)
        found = f"{known:g} in {cells[0]} and {rows[1][key]:g} in {cells[1]}"
        assert outcome.said == [
            f"sub-3: {key} of 'kidney' is {found}; its files changed between these cells; run step 4 with --overwrite "
            "for one set of them"
        ]
        assert outcome.code == 2 and listing(tmp_path) == before
        rows[1][key] = known
    (cells[1] / "metrics.json").write_text(json.dumps(contents[1]))
    assert run("reproduce_tables", "--config", trained).code == 0


def test_models_of_a_whole_run_know_their_scans(trained, tmp_path):
    field = json.loads((tmp_path / "work" / MODEL / "model.json").read_text())["field"]
    assert field["pixel_mm"] == [2.0, 2.0] and field["foreground_outside"] == 0


def test_a_learning_rate_far_too_high_is_what_the_line_says(trained, tmp_path):
    cell = tmp_path / "work" / MODEL
    shutil.rmtree(cell)
    words = ["--config", trained, "--init", "random", "--set", "finetuning.training.learning_rate=1e9"]
    outcome = run(CELLS, *words)
    assert outcome.code == 2 and len(outcome.said) == 1 and "lower learning_rate" in outcome.said[0]
    assert not (cell / "weights.npz").exists() and not (cell / "metrics.json").exists()
