"""python -m tools.score_predictions: label maps of any tool become a cell beside those of step 4, or are refused."""

import json
import shlex
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
from tests.cohort import AFFINE, FIRST_FOUR, save, write_cohort, write_config
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
    """A copy of the finished study, to be added to."""
    for part in ("data", "work"):
        shutil.copytree(finished / part, tmp_path / part)
    write_config(tmp_path)
    return tmp_path


@pytest.fixture
def predicted(study):
    """A folder with the reference of the only test subject as its prediction."""
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
    """The prediction that step 4 kept is scored as step 4 scored it, in the same place and with the same keys."""
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


def test_a_tool_that_needs_no_label_has_n_0(study, predicted):
    cell = ["--name", "segmentator", "--contrasts", "t1", "--subjects-n", "0", "--repeat", "0"]
    assert score(study, predicted, "--selecting", "0", cell=cell).code == 0
    found = metrics_of(study, "t1/segmentator/n00/r0")
    assert (found["n_annotated"], found["train_subjects"], found["n_selecting"]) == (0, [], 0)


def test_finished_scores_are_replaced_only_when_asked(study, predicted):
    assert score(study, predicted).code == 0
    folder = study / "work/finetuning/t1/nnunet/n01/r0"
    words = ["--config", study / "tiny.yaml", *CELL, "--predictions", predicted]
    line = f"{folder}: is scored already; give --overwrite, or another --name"
    assert_refused(study, TOOL, words, [line])
    save(predicted / "sub-3.nii.gz", np.zeros((16, 14, 4), np.uint8))
    assert score(study, predicted, "--overwrite").code == 0
    assert metrics_of(study)["per_subject"][0]["dice"] == 0


def test_a_cell_of_step_4_is_never_replaced(study, predicted):
    shutil.copytree(study / "work/finetuning/t1/global", study / "work/finetuning/t1/nnunet")  # a stage of another day
    words = ["--config", study / "tiny.yaml", *CELL, "--predictions", predicted, "--overwrite"]
    line = f"{study}/work/finetuning/t1/nnunet/n01/r0: holds a cell of step 4; give another --name"
    assert_refused(study, TOOL, words, [line])


NAMES = "--labels: 'liver' is missing; give liver=VALUE, or liver= if the predictions do not hold it"
COMMAND_LINES = [
    ("--name random", "--name random: is an initialisation of this study (random, global); give the name of the tool"),
    ("--name Global", "--name Global: is an initialisation of this study (random, global); give the name of the tool"),
    ("--name 'my tool'", "--name my tool: expected letters, digits, - and _, such as nnunet"),
    ("--name ../x", "--name ../x: expected letters, digits, - and _, such as nnunet"),
    ("--contrasts t9", "--contrasts t9: not one of finetuning.contrasts (t1)"),
    ("--predictions {new}", "--predictions {new}: no such folder; give the folder of the label maps"),
    ("--predictions {config}", "--predictions {config}: is a file, not a folder; give the folder of the label maps"),
    ("--labels kidney=1", NAMES),
    ("--labels kidny=1 liver=2", "--labels kidny=1: 'kidny' is not one of data.labels; did you mean 'kidney'?"),
    ("--labels kidney=0", "--labels kidney=0: expected NAME=VALUE with whole numbers above 0, such as kidney=1,2"),
    ("--labels kidney", "--labels kidney: expected NAME=VALUE with whole numbers above 0, such as kidney=1,2"),
    ("--labels kidney=1 liver=1", "--labels liver=1: is a value of 'kidney' too; a voxel has one class"),
    (
        "--labels kidney=1 liver=2 kidney=3",
        "--labels kidney=3: 'kidney' is named twice; list its values once, such as kidney=1,2",
    ),
    ("--ignored-values 2", "--ignored-values 2: is a value of 'liver'; a class is no background"),
    ("--fold 0", "--fold 0: there is no cross-validation in this config; leave the option away"),
    (
        "--subjects-n 2",
        "--subjects-n: 2 annotated subjects requested, but the training set has 1; choose at most 1",
    ),
    (
        "--subjects-n -1",
        f"python -m {TOOL}: error: argument --subjects-n: -1: expected a whole number of at least 0",
    ),
    (
        "--train-subjects sub-3",
        "--train-subjects sub-3: is a test subject; a tool that has seen it cannot be tested on it",
    ),
    ("--train-subjects sub-9", "--train-subjects sub-9: not in '{data}'; did you mean 'sub-<any>'?"),
    (
        "--train-subjects sub-1 sub-2",
        "--subjects-n 1: but --train-subjects names 2; N is what was annotated",
    ),
    ("--work-dir {new}", "{new}/h5/annotated.h5: no such file; run generate_h5_pretraining.py first"),
]


@pytest.mark.parametrize(("words", "line"), COMMAND_LINES, ids=[words[:40] for words, _ in COMMAND_LINES])
def test_a_mistake_on_the_command_line_is_named(words, line, finished, tmp_path):
    (tmp_path / "maps").mkdir()
    shutil.copy(finished / "data/sub-3/label.nii.gz", tmp_path / "maps/sub-3.nii.gz")
    names = {"config": finished / "tiny.yaml", "new": tmp_path / "new", "data": finished / "data"}
    base = ["--config", names["config"], *CELL, "--predictions", tmp_path / "maps"]
    more = [word.format(**names) for word in shlex.split(words)]
    assert_refused(tmp_path, TOOL, [*base, *more], [line], **names)
    assert not (finished / "work/finetuning/t1/nnunet").exists()


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


def rewrite(change, affine=AFFINE):
    """Return a function that changes the values of a label map."""

    def spoil(path):
        save(path, change(np.asarray(nibabel.load(path).dataobj)), affine)

    return spoil


def add(name):
    """Return a function that adds a copy under another name."""
    return lambda path: shutil.copy(path, path.with_name(name))


GRID = "a prediction lies on the grid of the scan; resample it there by nearest neighbour"
CURE = "give --labels NAME=VALUE ..., or list what is background in --ignored-values"
PROBABILITIES = "not whole numbers; give class numbers, not probabilities"
REMOVE = "only test subjects are scored, remove it"
FILES = {
    "a missing subject": (lambda path: path.unlink(), "sub-3: no prediction '{file}'; add it"),
    "an extra subject": (
        add("sub-33.nii.gz"),
        "'{maps}/sub-33.nii.gz': no subject of this study has this name; did you mean 'sub-3'?",
    ),
    "a training subject": (
        add("sub-1.nii.gz"),
        f"sub-1: '{{maps}}/sub-1.nii.gz' is a prediction of a training subject; {REMOVE}",
    ),
    "a validation subject": (
        add("sub-2.nii.gz"),
        f"sub-2: '{{maps}}/sub-2.nii.gz' is a prediction of a validation subject; {REMOVE}",
    ),
    "two predictions": (
        lambda path: save(path.with_name("sub-3.nii"), np.zeros((16, 14, 4), np.uint8)),
        "sub-3: has two predictions, '{maps}/sub-3.nii' and 'sub-3.nii.gz'; keep one",
    ),
    "a truncated file": (truncate, "sub-3: '{file}' <any>; copy or export it again"),
    "another shape": (
        rewrite(lambda values: values[:, :, :3]),
        f"sub-3: '{{file}}' is (16, 14, 3) but the scan is (16, 14, 4); {GRID}",
    ),
    "another affine": (
        rewrite(lambda values: values, np.diag([2, 2, 5, 1.0])),
        f"sub-3: '{{file}}' and the scan differ in <any>; {GRID}",
    ),
    "four axes": (
        rewrite(lambda values: np.stack([values, values], -1)),
        "sub-3: '{file}' is (16, 14, 4, 2), expected 3 axes; a label map is one 3D volume",
    ),
    "an unknown value": (
        rewrite(lambda values: values * np.uint8(7)),
        f"sub-3: '{{file}}' holds 7, which is no class (kidney 1, liver 2); {CURE}",
    ),
    "probabilities": (
        rewrite(lambda values: values * np.float32(0.5)),
        f"sub-3: '{{file}}' holds 0.5, {PROBABILITIES}",
    ),
    "NaN": (
        rewrite(lambda values: np.where(values, np.float32(np.nan), np.float32(0))),
        f"sub-3: '{{file}}' holds nan, {PROBABILITIES}",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_prediction_that_cannot_be_scored_is_named(name, finished, tmp_path):
    spoil, line = FILES[name]
    file = tmp_path / "maps/sub-3.nii.gz"
    file.parent.mkdir()
    shutil.copy(finished / "data/sub-3/label.nii.gz", file)
    spoil(file)
    words = ["--config", finished / "tiny.yaml", *CELL, "--predictions", file.parent]
    assert_refused(tmp_path, TOOL, words, [line], file=file, maps=file.parent)
    assert not (finished / "work/finetuning/t1/nnunet").exists()


def test_all_mistakes_are_named_at_once(finished, tmp_path):
    words = ["--config", finished / "tiny.yaml", *CELL[2:], "--name", "random", "--predictions", tmp_path / "no"]
    outcome = run(TOOL, *words, "--labels", "kidney=1", "lungs=2")
    assert outcome.code == 2 and len(outcome.said) == 3, outcome.said
    for name in ("sub-1", "sub-2", "nobody"):
        save(tmp_path / f"maps/{name}.nii.gz", np.zeros((16, 14, 4), np.uint8))
    more = ["--predictions", tmp_path / "maps", "--subjects-n", "5"]
    outcome = run(TOOL, "--config", finished / "tiny.yaml", *CELL, *more)
    assert outcome.code == 2 and len(outcome.said) == 5, outcome.said


# Step 5

NOTE = "nnU-Net 2.8.1, 2d, 250 epochs"
SAID = f"nnunet (external), N = 1: predictions of a tool outside this suite; {NOTE}."


def test_step_5_takes_an_external_cell_for_what_it_is(study, predicted):
    """In tables and page by its name, never as a cell that is missing, or that another config made."""
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


def test_an_external_cell_is_outdated_when_scores_are_made_otherwise(study, predicted):
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
    with pytest.raises(InputError, match=r"metrics.json: note holds int; delete the cell's folder"):
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
