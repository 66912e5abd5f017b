"""Label maps and masks that must be refused, and one that only looks wrong."""

import gzip

import numpy as np
import pytest

from data.layouts import SubjectFiles
from data.volumes import read_label
from tests.bad_input.harness import assert_refused, run
from tests.cohort import AFFINE, SHAPE, save, volumes, write_cohort

UNKNOWN = "which data.labels does not name; name them, or list them in data.ignored_label_values"
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
    "NaN": (lambda p: save(p, with_value(np.nan, np.float32)), f"'{{path}}' holds the values nan, {UNKNOWN}"),
    "infinity": (lambda p: save(p, with_value(np.inf, np.float32)), f"'{{path}}' holds the values inf, {UNKNOWN}"),
    "between two classes": (
        lambda p: save(p, with_value(1.001, np.float32)),
        f"'{{path}}' holds the values 1.00100005, {UNKNOWN}",
    ),
    "2**40": (lambda p: save(p, with_value(2**40, np.int64)), f"'{{path}}' holds the values 1.09951163e+12, {UNKNOWN}"),
    "scaled to 1": (
        lambda p: save(p, label(np.float32) / 255),
        f"'{{path}}' holds the values 0.00392156886, {UNKNOWN}",
    ),
    "image instead": (
        lambda p: save(p, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)),
        f"'{{path}}' holds the values 3, 4, 5, 6, 7, 8, 9, 10, ..., {UNKNOWN}",
    ),
    "nothing labelled": (
        lambda p: save(p, label() * 0),
        "'{path}' has no labelled voxel; remove the file to use the subject as unlabelled",
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
    "text": (
        lambda p: p.write_bytes(gzip.compress(b"mask" * 500)),
        "'{path}' is no NIfTI file; copy or export it again",
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
