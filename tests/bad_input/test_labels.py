"""Label maps and masks that must be refused, and one that only looks wrong."""

import gzip
import json

import numpy as np
import pytest

from data.layouts.subjects import SubjectFiles
from tests.bad_input.harness import assert_refused, run
from tests.cohort import AFFINE, FIRST_FOUR, MODEL, SHAPE, save, volumes, write_cohort
from tests.readers import read_label, read_mask
from utils.checks import InputError

UNKNOWN = "which data.labels does not name; name them, or list them in data.ignored_label_values"
BROKEN = (
    "which are not whole numbers; export it as class numbers; label maps are resampled by nearest neighbour, never "
    "interpolated"
)
ONE_GRID = 'all files of a subject must share one grid, or set data.resample_to (README, "Preparing data")'


def label(dtype=np.uint8):
    return volumes(1)["label"].astype(dtype)


def with_value(value, dtype):
    array = label(dtype)
    array[8, 7, 2] = value
    return array


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-60])


LABELS = {
    "negative": (lambda p: save(p, with_value(-1, np.int16)), f"'{{path}}' holds the values -1, {UNKNOWN}"),
    "unknown value": (lambda p: save(p, with_value(7, np.uint8)), f"'{{path}}' holds the values 7, {UNKNOWN}"),
    "NaN": (lambda p: save(p, with_value(np.nan, np.float32)), f"'{{path}}' holds the values nan, {BROKEN}"),
    "infinity": (lambda p: save(p, with_value(np.inf, np.float32)), f"'{{path}}' holds the values inf, {BROKEN}"),
    "between two classes": (
        lambda p: save(p, with_value(1.001, np.float32)),
        f"'{{path}}' holds the values 1.00100005, {BROKEN}",
    ),
    "2**40": (lambda p: save(p, with_value(2**40, np.int64)), f"'{{path}}' holds the values 1.09951163e+12, {UNKNOWN}"),
    "scaled to 1": (
        lambda p: save(p, label(np.float32) / 255),
        f"'{{path}}' holds the values 0.00392156886, {BROKEN}",
    ),
    "interpolated, and another class beside it": (
        lambda p: save(p, np.where(label() == 1, np.linspace(0.25, 4, 4, dtype=np.float32), 0).astype(np.float32)),
        f"'{{path}}' holds the values 0.25, 1.5, 2.75, {BROKEN}",
    ),
    "image instead": (
        lambda p: save(p, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)),
        f"'{{path}}' holds the values 3, 4, 5, 6, 7, 8, 9, 10, ..., {UNKNOWN}",
    ),
    "4D": (
        lambda p: save(p, np.stack([label()] * 2, axis=-1)),
        "'{path}' is (16, 14, 4, 2), expected 3 axes; a label map is one 3D volume",
    ),
    "other slices": (
        lambda p: save(p, label()[..., :3]),
        f"'{{path}}' is (16, 14, 3) but 't1.nii.gz' is (16, 14, 4); {ONE_GRID}",
    ),
    "mirrored": (
        lambda p: save(p, label(), AFFINE @ np.diag([-1.0, 1, 1, 1])),
        f"'{{path}}' and 't1.nii.gz' differ in voxel axes by 2 voxels; {ONE_GRID}",
    ),
    "complex": (
        lambda p: save(p, label(np.complex64)),
        "'{path}' holds complex64 values; export it as integers or floats",
    ),
    "truncated": (cut_short, "'{path}' is truncated; copy or export it again"),
}
TWO_VALUES = "a mask is 0 and 1: cut probabilities and label maps at a threshold"
MASKS = {
    "empty": (lambda p: save(p, label() * 0), "'{path}' is empty; a mask needs foreground"),
    "NaN": (
        lambda p: save(p, with_value(np.nan, np.float32)),
        "'{path}' holds NaN or infinite values; a mask is 0 and 1",
    ),
    "other slices": (
        lambda p: save(p, label()[..., :3]),
        f"'{{path}}' is (16, 14, 3) but 't1.nii.gz' is (16, 14, 4); {ONE_GRID}",
    ),
    "probabilities": (
        lambda p: save(p, np.linspace(0, 1, label().size, dtype=np.float32).reshape(SHAPE)),
        f"'{{path}}' holds more than two values, from 0 to 1; {TWO_VALUES}",
    ),
    "label map": (
        lambda p: save(p, with_value(2, np.uint8)),
        f"'{{path}}' holds more than two values, from 0 to 2; {TWO_VALUES}",
    ),
    "no background": (
        lambda p: save(p, label() + 1),
        "'{path}' holds 1 and 2, but no 0; a mask is 0 and 1",
    ),
    "text": (
        lambda p: p.write_bytes(gzip.compress(b"mask" * 500)),
        "'{path}' is not a NIfTI file; copy or export it again",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_a_bad_label_map_is_refused(name, tmp_path):
    config = write_cohort(tmp_path)
    spoil, text = LABELS[name]
    spoil(path := tmp_path / "data" / "sub-2" / "label.nii.gz")
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], [f"sub-2: {text}"], path=path)


@pytest.mark.parametrize("name", MASKS)
def test_a_bad_mask_is_refused(name, tmp_path):
    config = write_cohort(tmp_path)
    for subject in ("sub-1", "sub-2", "sub-3"):
        save(path := tmp_path / "data" / subject / "mask.nii.gz", label())
    spoil, text = MASKS[name]
    spoil(path := tmp_path / "data" / "sub-2" / "mask.nii.gz")
    words = ["--config", config, "--set", "data.mask='{subject}/mask.nii.gz'"]
    assert_refused(tmp_path, "generate_constraint_maps", words, [f"sub-2: {text}"], path=path)


@pytest.mark.parametrize("name", MASKS)
def test_check_dataset_looks_at_masks(name, tmp_path):
    config = write_cohort(tmp_path)
    for subject in ("sub-1", "sub-2", "sub-3"):
        save(path := tmp_path / "data" / subject / "mask.nii.gz", label())
    spoil, text = MASKS[name]
    spoil(path := tmp_path / "data" / "sub-2" / "mask.nii.gz")
    outcome = run("tools.check_dataset", "--config", config, "--set", "data.mask='{subject}/mask.nii.gz'")
    assert (outcome.code, outcome.said) == (
        2,
        [f"sub-2: {text}".format(path=path).replace("'t1.nii.gz' is", "the scan is")],
    )


@pytest.mark.parametrize(("levels", "share"), [((0, 1), None), ((0, 255), None), ((0, 0.5), None), ((1, 1), 1.0)])
def test_a_mask_of_two_values_or_of_everything_is_read(levels, share, tmp_path):
    array = np.array(levels, np.float32)[label()]
    save(tmp_path / "mask.nii.gz", array)
    mask = read_mask(SubjectFiles("sub-1", {}, mask=tmp_path / "mask.nii.gz"), SHAPE)
    assert mask.mean() == (share or label().mean())


NOTHING = "'{path}' has no labelled voxel; remove the file to use the subject as unlabelled, or set "
NOTHING += "data.empty_labels: allow if all is background"


@pytest.mark.parametrize("script", ["tools.check_dataset", "generate_constraint_maps", "generate_h5_pretraining"])
def test_an_empty_label_map_is_refused_if_all_subjects_must_have_labels(script, tmp_path):
    config = write_cohort(tmp_path)
    save(path := tmp_path / "data" / "sub-2" / "label.nii.gz", label() * 0)
    words = ["--config", config, "--set", "data.empty_labels=refuse", "constraint_maps=null", "pretraining=null"]
    words = words if script == "generate_h5_pretraining" else words[:4]
    words += ["finetuning.inits=[random]"] if len(words) > 4 else []
    outcome = run(script, *words)
    assert outcome.code == 2 and outcome.said == [f"sub-2: {NOTHING}".format(path=path)]


def test_empty_label_maps_are_reported_and_training_without_labels_is_refused(tmp_path):
    config = write_cohort(tmp_path)
    words = ["--config", config, "--set", "constraint_maps=null", "pretraining=null", "finetuning.inits=[random]"]
    save(tmp_path / "data" / "sub-3" / "label.nii.gz", label() * 0)
    checked = run("tools.check_dataset", *words)
    assert checked.code == 0 and "nothing labelled" in (tmp_path / "work/check/subjects.csv").read_text()
    outcome = run("generate_h5_pretraining", *words)
    assert outcome.code == 0 and [line for line in outcome.logged if line.startswith(NOTICED.format("sub-3"))]
    quiet = run("generate_h5_pretraining", *words, "data.empty_labels=allow", "--overwrite")
    assert quiet.code == 0 and not [line for line in quiet.logged if "no labelled voxel" in line]
    save(tmp_path / "data" / "sub-1" / "label.nii.gz", label() * 0)
    refused = run("generate_h5_pretraining", *words, "--overwrite")
    what = "no training subject (sub-1) has a labelled voxel, so there is nothing to learn"
    assert refused.code == 2 and refused.said == [f"annotated.h5: {what}; correct data.label or the label maps"]


NOTICED = (
    "no labelled voxel in the label maps of {}: trained and scored as background throughout, like healthy subjects"
)


@pytest.mark.parametrize("subject", ["sub-1", "sub-3"])
def test_healthy_subjects_train_and_are_scored_when_the_config_says_so(subject, tmp_path):
    """`sub-1` is for training, `sub-3` for testing: volume and false positives are measured, but there is no Dice."""
    config = write_cohort(tmp_path)
    save(tmp_path / "data" / subject / "label.nii.gz", label() * 0)
    words = ["--config", config, "--set", "data.empty_labels=allow", "finetuning.inits=[random]"]
    outcomes = [run(script, *words) for script in ("tools.check_dataset", *FIRST_FOUR)]
    assert [outcome.code for outcome in outcomes] == [0] * 5, outcomes
    assert not [line for each in outcomes for line in each.logged if "nan%" in line or "outside slices" in line]
    rows = json.loads((tmp_path / "work" / MODEL / "metrics.json").read_text())["per_subject"]
    row = next(row for row in rows if row["label"] == "kidney")
    assert row["subject"] == "sub-3" and row["volume_ml"] is not None
    if subject == "sub-3":
        assert row["volume_ml_reference"] == 0
        assert row["dice"] == (None if row["volume_ml"] == 0 else 0)
    assert run("reproduce_tables", *words).code == 0


def test_a_label_map_emptied_by_resampling_is_always_refused(tmp_path):
    far = AFFINE.copy()
    far[0, 3] += 1000
    save(tmp_path / "t1.nii.gz", volumes(0)["t1"])
    save(tmp_path / "label.nii.gz", label(), far)
    t1 = {"t1": tmp_path / "t1.nii.gz"}
    files = SubjectFiles("sub-1", t1, label=tmp_path / "label.nii.gz", resample_to="t1", empty_labels="allow")
    with pytest.raises(InputError, match="has no labelled voxel on the grid of the scans; correct its affine"):
        read_label(files, {"kidney": [1]})


@pytest.mark.parametrize("name", LABELS)
def test_step_2_refuses_label_maps_that_went_bad_after_step_1(name, tmp_path):
    config = write_cohort(tmp_path)
    spoil, text = LABELS[name]
    path = tmp_path / "data" / "sub-2" / "label.nii.gz"
    words = ["--config", config, "--set", "constraint_maps=null", "pretraining=null", "finetuning.inits=[random]"]
    spoil(path)
    assert_refused(tmp_path, "generate_h5_pretraining", words, [f"sub-2: {text}"], path=path)
    assert run("generate_h5_pretraining", *words, "data.label=null", "data.labels={}", "finetuning=null").code == 0


@pytest.mark.parametrize("value", [1.0000001, 0.99995, 1.00005])
def test_a_label_that_rounding_moved_off_its_value_means_that_value(value, tmp_path):
    array = label(np.float32)
    save(tmp_path / "label.nii.gz", np.where(array == 1, np.float32(value), array))
    files = SubjectFiles("sub-1", {}, label=tmp_path / "label.nii.gz")
    np.testing.assert_array_equal(read_label(files, {"liver": [2], "kidney": [1]}), 2 * label())
