"""python -m tools.score_predictions with mistakes: one line each, all at once, and nothing is written."""

import shlex
import shutil

import nibabel
import numpy as np
import pytest

from tests.bad_input.harness import assert_refused, run
from tests.cohort import AFFINE, save
from tests.tools.test_score_predictions import CELL, TOOL

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
    ("--ignored-values 2", "--ignored-values 2: is a value of the class 'liver', so it cannot be background"),
    ("--fold 0", "--fold 0: this config has no cross-validation; omit the option"),
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
        f"sub-3: '{{file}}' holds 7, but the classes are kidney 1, liver 2; {CURE}",
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
