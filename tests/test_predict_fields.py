"""predict.py with tissue outside the slices, or with voxel sizes unlike those of training."""

import json

import nibabel
import numpy as np
import pytest

from data.scans.volumes import write_nifti
from tests.bad_input.harness import run
from tests.cohort import MODEL, write_cohort
from tests.test_predict_segmentation import write_model

pytestmark = pytest.mark.usefixtures("uncompiled")

SPACING = (2.0, 2.0, 4.0)


def body(air=0):
    """Return a body of 16 x 16 pixels with additional air on one side."""
    volume = np.zeros((20 + air, 20, 4), np.float32)
    volume[2:18, 2:18] = 100 + np.random.default_rng(0).random((16, 16, 4)) * 100
    return volume


def predict(model, folder, volume, spacing=SPACING):
    write_nifti(folder / "scans/sub-1/t1.nii.gz", volume, np.diag([*spacing, 1.0]))
    words = ["--model", model, "--input", folder / "scans", "--output", folder / "out"]
    outcome = run("predict", *words)
    assert (folder / "out/sub-1.nii.gz").exists() == (outcome.code == 0)
    return outcome


def outside(shown):
    """Return the lines on tissue outside the slices."""
    return [line for line in shown if "of the tissue lies outside the middle" in line]


# Slices of 24 x 24 centred on 20 + air columns: the first (air - 4) / 2 columns are cut off.
@pytest.mark.parametrize(("air", "cut"), [(0, 0), (8, 0), (10, 1), (14, 3), (16, 4), (40, 16)])
def test_tissue_outside_the_slices_is_said_and_much_of_it_refused(tmp_path, air, cut):
    outcome, share = predict(write_model(tmp_path / "model"), tmp_path, body(air)), cut / 16
    said = outside(outcome.said if share >= 0.2 else outcome.logged)
    assert outcome.code == (2 if share >= 0.2 else 0)
    assert len(said) == (1 if share >= 0.01 else 0)
    if said:
        assert said[0].startswith(f"sub-1: {share:.1%} of the tissue lies outside the middle 48 x 48 mm (rows x col")


@pytest.mark.parametrize(("lost", "code"), [(0.05, 2), (0.21, 0), (0.1, 2)])
def test_a_model_that_lost_as_much_in_training_is_used(tmp_path, lost, code):
    model = write_model(tmp_path / "model", field={"foreground_outside": lost})
    outcome = predict(model, tmp_path, body(16))  # a quarter
    assert outcome.code == code and len(outside(outcome.said + outcome.logged)) == 1


def test_a_mask_says_what_tissue_is(tmp_path):
    model = write_model(tmp_path / "model", mask="{subject}/mask.nii.gz")
    mask = np.zeros((60, 20, 4), np.uint8)
    mask[20:40] = 1
    write_nifti(tmp_path / "scans/sub-1/mask.nii.gz", mask, np.diag([*SPACING, 1.0]))
    outcome = predict(model, tmp_path, body(40))
    assert outcome.code == 0 and not outside(outcome.said + outcome.logged)


@pytest.mark.parametrize(
    ("spacing", "code", "said"),
    [((2, 2, 4), 0, 0), ((2.3, 2.3, 9), 0, 0), ((2.5, 2.5, 4), 0, 1), ((2, 1.5, 4), 0, 1), ((1, 1, 4), 2, 1)],
)
def test_pixels_unlike_those_of_training(tmp_path, spacing, code, said):
    field = {"pixel_mm": [2.0, 2.0], "slice_mm": [4.0, 4.0]}
    outcome = predict(write_model(tmp_path / "model", field=field), tmp_path, body(), spacing)
    lines = [line for line in outcome.said + outcome.logged if "its pixels are" in line]
    assert (outcome.code, len(lines)) == (code, said)
    if code:
        assert lines == [
            "sub-1: its pixels are 1 x 1 mm, those of the scans that the model was trained on 2 mm, and this model "
            "does not resample; resample the scan to 2 mm"
        ]


def test_a_model_that_resamples_takes_pixels_of_any_size(tmp_path):
    slices = {"image_size": [24, 24], "pixel_size": 2.0, "min_foreground": 0.1}
    model = write_model(tmp_path / "model", field={"pixel_mm": [2.0, 2.0], "slice_mm": [4.0, 4.0]}, slices=slices)
    outcome = predict(model, tmp_path, body(), (1, 1, 4))
    assert outcome.code == 0 and not [line for line in outcome.logged if "pixels" in line]


def test_all_scans_are_named_before_the_first_is_predicted(tmp_path):
    model = write_model(tmp_path / "model")
    for number in (2, 3):
        write_nifti(tmp_path / f"scans/sub-{number}/t1.nii.gz", body(40), np.diag([*SPACING, 1.0]))
    outcome = run("predict", "--model", model, "--input", tmp_path / "scans", "--output", tmp_path / "out")
    assert outcome.code == 2 and [line[:5] for line in outcome.said] == ["sub-2", "sub-3"]
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_a_field_of_nonsense_is_refused(tmp_path):
    model = write_model(tmp_path / "model", field={"pixel_mm": [0, 2]})
    outcome = predict(model, tmp_path, body())
    assert outcome.code == 2 and "field.pixel_mm" in outcome.said[0]
    assert json.loads((model / "model.json").read_text())["field"] == {"pixel_mm": [0, 2]}


def test_steps_1_and_2_tell_what_slices_do_not_show_and_step_4_notes_it(tmp_path):
    config = write_cohort(tmp_path, slices={"image_size": [8, 16], "min_foreground": 0.0})
    for step in ("generate_constraint_maps", "generate_h5_pretraining"):
        outcome = run(step, "--config", config)
        told = [line for line in outcome.logged if line.startswith("in 3 of 3 subjects, some of the foreground lies ")]
        assert outcome.code == 0 and len(told) == 1
    assert run("finetune_segmentation", "--config", config, "--init", "random").code == 0
    field = json.loads((tmp_path / "work" / MODEL / "model.json").read_text())["field"]
    mask = nibabel.load(tmp_path / "work/constraint_maps/sub-1.nii.gz").get_fdata() > 0
    assert field["pixel_mm"] == [2.0, 2.0] and field["slice_mm"] == [5.0, 5.0]
    assert 1 - mask[:, 3:11].sum() / mask.sum() == pytest.approx(field["foreground_outside"], abs=0.05)
    assert field["foreground_outside"] > 0.2
