"""predict.py keeps results of the same model, scan and options, and label maps saved by an editor."""

import csv
import json
import shutil

import nibabel
import numpy as np
import pytest

from tests.bad_input.harness import listing, run
from tests.test_predict_segmentation import AFFINE, write_model, write_scan

pytestmark = pytest.mark.usefixtures("uncompiled")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_model(folder / "model")
    for number in (1, 2):
        write_scan(folder / f"scans/sub-{number}/t1.nii.gz", number)
    assert predict(folder).code == 0
    return folder


@pytest.fixture
def made(made_once, tmp_path):
    """Return a model, two scans and their predictions."""
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


def predict(folder, *words, model="model"):
    places = ["--model", folder / model, "--input", folder / "scans", "--output", folder / "out"]
    return run("predict", *places, *words)


def volumes(folder):
    with (folder / "out/volumes.csv").open(newline="") as file:
        return {(row["subject"], row["label"]): int(row["voxels"]) for row in csv.DictReader(file)}


def assert_refused(folder, line, *words, **model):
    before = listing(folder / "out")
    outcome = predict(folder, *words, **model)
    assert (outcome.code, outcome.said) == (2, [line]) and listing(folder / "out") == before


CURE = "give --overwrite to make them again, or another --output"
BOTH = "2 results there (sub-1.nii.gz, sub-2.nii.gz)"


def test_label_maps_of_earlier_versions_are_kept_as_they_are(made):
    """They have no intent code, and no names and colours beside them."""
    path = made / "out/sub-1.nii.gz"
    image = nibabel.load(path)
    old = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    old.header.set_intent("none")
    nibabel.save(old, path)
    for name in ("dseg.tsv", "labels.ctbl", "labels.itksnap.txt"):
        (made / "out" / name).unlink()
    before, counted = path.read_bytes(), volumes(made)
    assert predict(made).code == 0
    assert path.read_bytes() == before and volumes(made) == counted and (made / "out/dseg.tsv").exists()


def with_other_labels(folder):
    shutil.copytree(folder / "model", folder / "other")
    path = folder / "other/model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": {"liver": 1, "kidney": 2}}))


def with_other_weights(folder):
    write_model(folder / "other", seed=5)


@pytest.mark.parametrize("make", [with_other_labels, with_other_weights])
def test_results_of_another_model_are_refused_or_made_again(made, make):
    make(made)
    before = volumes(made)
    assert_refused(made, f"--output {made}/out: another model made {BOTH}; {CURE}", model="other")
    assert predict(made, "--overwrite", model="other").code == 0
    assert volumes(made) != before
    assert predict(made, model="other").code == 0
    assert_refused(made, f"--output {made}/out: another model made {BOTH}; {CURE}")


def test_a_copy_of_the_model_is_the_same_model(made):
    content = json.loads((made / "model/model.json").read_text())
    shutil.copytree(made / "model", made / "copy")
    (made / "copy/model.json").write_text(json.dumps({"trained_on": ["sub-7"]} | dict(reversed(content.items()))))
    outcome = predict(made, model="copy")
    assert outcome.code == 0 and "2 of 2 label maps exist and are kept; --overwrite replaces them" in outcome.logged


def test_the_members_of_an_ensemble_count_not_their_order(made):
    write_model(made / "second", seed=2)
    words = ["--input", made / "scans", "--output", made / "both"]
    for models, code in (("model second", 0), ("second model", 0), ("model", 2), ("second second", 2)):
        assert run("predict", "--model", *(made / name for name in models.split()), *words).code == code


@pytest.mark.parametrize("words", [("--flip", "left_right"), ("--largest-component",), ("--min-component-ml", "0.1")])
def test_other_options_are_refused(made, words):
    assert_refused(made, f"--output {made}/out: other options made {BOTH}; {CURE}", *words)
    assert predict(made, *words, "--overwrite").code == 0
    assert predict(made, *words).code == 0


def test_clean_up_does_not_shape_probabilities(made):
    assert predict(made, "--probabilities").code == 0
    for number in (1, 2):
        (made / f"out/sub-{number}.nii.gz").unlink()
    assert predict(made, "--probabilities", "--largest-component").code == 0


def test_a_scan_that_changed_is_not_what_was_predicted(made):
    write_scan(made / "scans/sub-2/t1.nii.gz", 7)
    line = "another scan, or an older version of it, was used for 1 result there (sub-2.nii.gz)"
    assert_refused(made, f"--output {made}/out: {line}; {CURE}")


@pytest.mark.parametrize("spoil", [lambda table: table.unlink(), lambda table: cut(table)])
def test_results_without_a_record_are_refused(made, spoil):
    spoil(made / "out/made_by.csv")
    assert_refused(made, f"--output {made}/out: there is no record of what made {BOTH}; {CURE}")
    assert predict(made, "--overwrite").code == 0 and predict(made).code == 0


def cut(table):
    table.write_text(table.read_text().splitlines()[0] + "\n")


def test_one_scan_at_a_time_is_compared_too(made):
    words = ["--input", made / "scans/sub-1/t1.nii.gz", "--output", made / "one/kidneys.nii"]
    with_other_labels(made)
    for model, code in (("model", 0), ("model", 0), ("other", 2)):
        assert run("predict", "--model", made / model, *words).code == code


def edit(folder, change, kind=np.float32, slope=None):
    path = folder / "out/sub-1.nii.gz"
    values = change(np.asarray(nibabel.load(path).dataobj).astype(np.float64))
    image = nibabel.Nifti1Image(values.astype(kind), AFFINE)
    if slope:
        image.header.set_slope_inter(*slope)
    nibabel.save(image, path)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int16, np.uint16])
def test_a_label_map_that_an_editor_saved_counts_as_before(made, kind):
    before = volumes(made)
    edit(made, lambda values: values, kind)
    assert predict(made).code == 0 and volumes(made) == before
    edit(made, lambda values: values * 1.00001, np.float64)
    assert predict(made).code == 0 and volumes(made) == before


def test_a_corrected_label_map_is_counted_as_corrected(made):
    edit(made, lambda values: np.where(values == 1, 0, values))
    before = volumes(made)
    assert predict(made).code == 0
    assert volumes(made) == before | {("sub-1", "kidney"): 0}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda values: np.where(values == 1, 0.97, values), "holds 0.97, expected whole numbers from 0 to 2"),
        (lambda values: np.where(values == 1, 3, values), "holds 3, expected whole numbers from 0 to 2"),
        (lambda values: np.where(values == 1, -1, values), "holds -1, expected whole numbers from 0 to 2"),
        (lambda values: np.where(values == 1, np.nan, values), "holds nan, expected whole numbers from 0 to 2"),
        (lambda values: np.stack([values, values], -1), "is (20, 18, 5, 2), expected 3 axes"),
    ],
)
def test_a_file_that_is_no_label_map_is_reported_in_one_line(made, change, what):
    edit(made, change, np.float64)
    line = f"sub-1: '{made}/out/sub-1.nii.gz' {what}; restore it, or make it again with --overwrite"
    assert_refused(made, line)
