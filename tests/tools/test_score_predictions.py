"""python -m tools.score_predictions: label maps of any tool become a cell beside those of step 4."""

import json
import shutil

import nibabel
import numpy as np
import pandas
import pytest

from evaluation.scores.external import external_notes
from evaluation.scores.scores import read_scores
from evaluation.scores.scores_csv import read_scores_csv
from reproduce_tables import grid_gaps
from tests.bad_input.harness import assert_refused, run
from tests.cohort import FIRST_FOUR, save, write_cohort, write_config
from tests.tools.test_export_dataset import export
from utils.checks import InputError
from utils.config.load import load_config

TOOL = "tools.score_predictions"
CELL = ["--name", "nnunet", "--contrasts", "t1", "--subjects-n", "1", "--repeat", "0"]
KIDNEY = {"sub-3": 1}


def score(folder, predictions, *words, cell=CELL):
    return run(TOOL, "--config", folder / "tiny.yaml", *cell, "--predictions", predictions, *words)


@pytest.fixture
def study(finished, tmp_path):
    """Return a copy of the finished study, to add cells to."""
    for part in ("data", "work"):
        shutil.copytree(finished / part, tmp_path / part)
    write_config(tmp_path)
    return tmp_path


@pytest.fixture
def predicted(study):
    """Return a folder with the reference of the only test subject as its prediction."""
    (study / "predicted").mkdir()
    shutil.copy(study / "data/sub-3/label.nii.gz", study / "predicted/sub-3.nii.gz")
    return study / "predicted"


def metrics_of(study, cell="t1/nnunet/n01/r0"):
    return json.loads((study / "work/finetuning" / cell / "metrics.json").read_text())


def kidney_of(study):
    return np.asarray(nibabel.load(study / "data/sub-3/label.nii.gz").dataobj)


def test_exported_references_come_back_as_perfect_predictions(study):
    assert export(study / "tiny.yaml", study / "raw").code == 0
    outcome = score(study, study / "raw/Dataset501_tiny_t1/labelsTs", "--note", "the references themselves")
    assert outcome.code == 0, outcome.said
    found = metrics_of(study)
    assert [(row["subject"], row["label"], row["dice"]) for row in found["per_subject"]] == [
        ("sub-3", "kidney", 1.0),
        ("sub-3", "liver", None),
    ]
    kidney = found["per_subject"][0]
    assert (kidney["hd95_mm"], kidney["surface_dice"]) == (0, 1)
    assert kidney["volume_ml"] == kidney["volume_ml_reference"] > 0
    assert found["external"]["note"] == "the references themselves"
    assert (found["init"], found["n_annotated"], found["train_subjects"]) == ("nnunet", 1, ["sub-1"])


def test_a_cell_is_like_one_of_step_4(study, predicted):
    """The prediction of step 4 gets the scores of step 4, in the same folder layout and with the same keys."""
    own = study / "work/finetuning/t1/random/n01/r0"
    outcome = score(study, own / "predictions")
    assert outcome.code == 0, outcome.said
    step_4, found = json.loads((own / "metrics.json").read_text()), metrics_of(study)
    assert found["per_subject"] == step_4["per_subject"]
    same = ("seed", "split", "split_hash", "contrasts", "n_annotated", "repeat", "train_subjects", "labels")
    assert [found[key] for key in (*same, "annotated_available")] == [
        step_4[key] for key in (*same, "annotated_available")
    ]
    kept = study / "work/finetuning/t1/nnunet/n01/r0"
    assert (kept / "environment.json").is_file() and (kept / "resolved_config.yaml").is_file()
    assert (kept / "command.txt").read_text().startswith("python -m tools.score_predictions --config ")
    one, other = (nibabel.load(folder / "predictions/sub-3.nii.gz") for folder in (own, kept))
    assert np.array_equal(one.dataobj, other.dataobj) and np.array_equal(one.affine, other.affine)
    assert one.header.get_intent()[0] == other.header.get_intent()[0] == "label"
    for name in ("dseg.tsv", "labels.itksnap.txt", "labels.ctbl"):
        assert (own / "predictions" / name).read_text() == (kept / "predictions" / name).read_text()
    assert "1\tkidney\t#F0E442\n" in (kept / "predictions/dseg.tsv").read_text()


def test_a_shifted_prediction_has_the_dice_of_the_formula(study, predicted):
    true = kidney_of(study) == 1
    shifted = np.roll(true, 2, axis=0)
    save(predicted / "sub-3.nii.gz", shifted.astype(np.uint8))
    assert score(study, predicted).code == 0
    expected = 2 * sum(map(min, true.ravel().tolist(), shifted.ravel().tolist())) / (true.sum() + shifted.sum())
    assert 0 < expected < 1
    assert metrics_of(study)["per_subject"][0]["dice"] == pytest.approx(expected, abs=1e-12)


def test_values_are_mapped_by_name(study, predicted):
    kidney = kidney_of(study)
    values = np.where(kidney == 1, 5 + np.arange(16)[:, None, None] % 2, 0) + 9 * (np.roll(kidney, 8, 0) > kidney)
    save(predicted / "sub-3.nii.gz", values.astype(np.float32))  # floats that are whole numbers
    words = ["--labels", "liver=", "kidney=5,6", "--ignored-values", "9"]
    outcome = score(study, predicted, *words)
    assert outcome.code == 0, outcome.said
    assert metrics_of(study)["per_subject"][0]["dice"] == 1
    kept = nibabel.load(study / "work/finetuning/t1/nnunet/n01/r0/predictions/sub-3.nii.gz")
    assert np.array_equal(kept.dataobj, kidney) and kept.get_data_dtype() == np.uint8


def test_all_values_that_no_class_has_may_be_background(study, predicted):
    kidney = kidney_of(study)
    everything = np.where(kidney == 1, 40, np.arange(4)[None, None] + 50).astype(np.int16)
    save(predicted / "sub-3.nii.gz", everything)
    words = ["--labels", "kidney=40", "liver=41", "--ignored-values"]
    refused = score(study, predicted, *words, "50", "51")
    assert refused.code == 2 and "holds 52, 53, but the classes are kidney 40, liver 41" in refused.said[0]
    assert score(study, predicted, *words, "others").code == 0
    assert metrics_of(study)["per_subject"][0]["dice"] == 1


def test_a_tool_that_needs_no_label_has_n_0(study, predicted):
    cell = ["--name", "segmentator", "--contrasts", "t1", "--subjects-n", "0", "--repeat", "0"]
    assert score(study, predicted, "--selecting", "0", cell=cell).code == 0
    found = metrics_of(study, "t1/segmentator/n00/r0")
    assert (found["n_annotated"], found["train_subjects"], found["n_selecting"]) == (0, [], 0)


def test_finished_scores_are_replaced_only_when_asked(study, predicted):
    assert score(study, predicted).code == 0
    folder = study / "work/finetuning/t1/nnunet/n01/r0"
    words = ["--config", study / "tiny.yaml", *CELL, "--predictions", predicted]
    line = f"{folder}: is already scored; give --overwrite, or another --name"
    assert_refused(study, TOOL, words, [line])
    save(predicted / "sub-3.nii.gz", np.zeros((16, 14, 4), np.uint8))
    assert score(study, predicted, "--overwrite").code == 0
    assert metrics_of(study)["per_subject"][0]["dice"] == 0


def test_a_cell_of_step_4_is_never_replaced(study, predicted):
    shutil.copytree(study / "work/finetuning/t1/global", study / "work/finetuning/t1/nnunet")  # a stage trained later
    words = ["--config", study / "tiny.yaml", *CELL, "--predictions", predicted, "--overwrite"]
    line = f"{study}/work/finetuning/t1/nnunet/n01/r0: holds a cell of step 4; give another --name"
    assert_refused(study, TOOL, words, [line])


# Step 5

NOTE = "nnU-Net 2.8.1, 2d, 250 epochs"
SAID = f"nnunet (external), N = 1: predictions of a tool outside this suite; {NOTE}."


def test_step_5_takes_an_external_cell_for_what_it_is(study, predicted):
    """Tables and page show it by name, never as a missing cell or as one of another config."""
    assert score(study, predicted, "--note", NOTE).code == 0
    zero = ["--name", "segmentator", "--contrasts", "t1", "--subjects-n", "0", "--repeat", "0"]
    assert score(study, predicted, cell=zero).code == 0
    outcome = run("reproduce_tables", "--config", study / "tiny.yaml")
    assert outcome.code == 0, outcome.said
    report = study / "work/report"
    rows = pandas.read_csv(report / "tables/dice.csv").query("label == 'mean over labels'")
    means = dict(zip(zip(rows["init"], rows["n_annotated"], strict=True), rows["mean"], strict=True))
    assert means["nnunet (external)", 1] == means["segmentator (external)", 0] == 1
    assert {("random", 1), ("global", 1)} < set(means) and len(means) == 4
    assert set(pandas.read_csv(report / "tables/dice_differences.csv")["init"]) == {"global", "nnunet (external)"}
    assert SAID in outcome.logged
    assert any("segmentator (external), N = 0" in line and "nothing was stated" in line for line in outcome.logged)
    wrong = ("Missing", "another config", "No overlay", "No thumbnail")
    assert not [line for line in outcome.logged if any(word in line for word in wrong)]
    page = (report / "index.html").read_text()
    assert page.count("nnunet (external)") > 3 and NOTE in page and "tools.score_predictions" in page
    assert "(external): predictions that were made outside this suite" in (report / "tables/dice.md").read_text()
    assert (report / "figures/overlay_t1_n00.png").is_file() and (report / "figures/overlay_t1_n01.png").is_file()
    assert external_notes(read_scores_csv(report / "tables/scores.csv"))[0] == SAID


def test_an_external_cell_is_outdated_if_scoring_changes(study, predicted):
    assert score(study, predicted).code == 0
    scores = read_scores(study / "work")
    for changes, lines in (
        ([], []),
        (["slices.image_size=[32, 32]"], []),
        (
            ["evaluation.surface_tolerance_mm=9"],
            ["t1/nnunet (external)/n01 was made with another config than this one."],
        ),
    ):
        found = grid_gaps(load_config(study / "tiny.yaml", changes), scores)
        assert [line for line in found if "external" in line] == lines


def test_a_broken_note_is_refused(study, predicted):
    assert score(study, predicted).code == 0
    file = study / "work/finetuning/t1/nnunet/n01/r0/metrics.json"
    file.write_text(json.dumps(metrics_of(study) | {"external": {"note": 3}}))
    with pytest.raises(InputError, match="note holds int; .* run tools.score_predictions again"):
        read_scores(study / "work")


def test_folds_are_scored_one_by_one_and_all_at_once_without_training(tmp_path):
    folds = {"folds": 3, "validation": 1}
    config = write_cohort(tmp_path, constraint_maps=None, pretraining=None)
    words = ["--set", f"data.splits={json.dumps(folds)}", "finetuning.inits=[random]"]
    assert run(FIRST_FOUR[1], "--config", config, *words).code == 0
    for number in (1, 2, 3):
        shutil.copytree(tmp_path / f"data/sub-{number}", tmp_path / f"maps/sub-{number}")
        (tmp_path / f"maps/sub-{number}/label.nii.gz").rename(tmp_path / f"maps/sub-{number}.nii.gz")
    base = ["--config", config, *words, "--contrasts", "t1", "--repeat", "0", "--predictions", tmp_path / "maps"]
    one = [*base, "--name", "one", "--subjects-n", "1"]
    line = "--fold: is missing; say which of the 3 folds is tested, 0 to 2"
    assert_refused(tmp_path, TOOL, one, [line])
    assert_refused(tmp_path, TOOL, [*one, "--fold", "3"], ["--fold 3: there are 3, counted from 0"])
    outcome = run(TOOL, *one, "--fold", "1")
    assert outcome.code == 2 and len(outcome.said) == 2, outcome.said
    assert all("only test subjects are scored" in line for line in outcome.said)
    assert run(TOOL, *base, "--name", "all", "--subjects-n", "0").code == 0
    files = sorted(tmp_path.glob("work/fold*/finetuning/t1/all/n00/r0/metrics.json"))
    cells = [json.loads(file.read_text()) for file in files]
    assert [cell["split"] for cell in cells] == ["fold0", "fold1", "fold2"]
    assert {row["subject"] for cell in cells for row in cell["per_subject"]} == {"sub-1", "sub-2", "sub-3"}
    scores = read_scores(tmp_path / "work")
    assert scores.runs == {("t1", "all (external)", 0): {"fold0/r0", "fold1/r0", "fold2/r0"}}
