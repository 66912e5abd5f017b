"""Command lines with mistakes, and folders that are not writable."""

import importlib
import os
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.bad_input.harness import ROOT, assert_refused, listing, run, without_usage
from tests.cohort import write_cohort

MAPS, PACK, PRETRAIN = "generate_constraint_maps", "generate_h5_pretraining", "constrained_contrastive_learning"
FINETUNE, TABLES = "finetune_segmentation", "reproduce_tables"
NOBODY = 65534
AT_LEAST_1 = "expected a whole number of at least 1"
CASES = [
    (MAPS, "--jbos 2", f"{MAPS}.py: error: unrecognized arguments: --jbos 2"),
    (MAPS, "--jobs 0", "--jobs 0: expected at least 1"),
    (MAPS, "--jobs -2", "--jobs -2: expected at least 1"),
    (MAPS, "--jobs two", f"{MAPS}.py: error: argument --jobs: invalid int value: 'two'"),
    (MAPS, "--subjects", f"{MAPS}.py: error: argument --subjects: expected at least one argument"),
    (MAPS, "--subjects nobody", "--subjects nobody: not in '{data}'"),
    (MAPS, "--subjects sub-l", "--subjects sub-l: not in '{data}'; did you mean 'sub-<any>'?"),
    (MAPS, "--set seed", "--set seed: expected key.path=value, such as finetuning.repeats=5"),
    (MAPS, "--set =3", "--set =3: expected key.path=value, such as finetuning.repeats=5"),
    (MAPS, "--set sed=3", "{config}: sed: unknown key; did you mean 'seed'?"),
    (MAPS, "--set seed.x=3", "--set seed.x=3: 'seed' is a single value, not a section"),
    (
        MAPS,
        "--set seed=[1",
        "--set seed: line 1, column 3: while parsing a flow sequence expected ',' or ']', but got '<stream end>'",
    ),
    (MAPS, "--set seed=-1", "{config}: seed: Input should be greater than or equal to 0 (found -1)"),
    (
        MAPS,
        "--set data.root=/nowhere",
        "data.root: '/nowhere' is not a folder; set data.root to the folder of the dataset",
    ),
    (
        MAPS,
        "--set constraint_maps=null",
        "{config}: this step needs the section 'constraint_maps:'",
    ),
    (
        MAPS,
        "--set 'data.splits={{folds: 9, fold: 9, validation: 1}}'",
        "{config}: data.splits.fold: unknown key; did you mean 'folds'?",
    ),
    (PACK, "--jobs 0", "--jobs 0: expected at least 1"),
    (PRETRAIN, "--method simclr", "--method simclr: not one of the stages global"),
    (PRETRAIN, "--devices 0", f"{PRETRAIN}.py: error: argument --devices: 0: {AT_LEAST_1}"),
    (
        PRETRAIN,
        "--devices 3",
        "pretraining.stages.global.training.batch_size: 2 slices cannot be split evenly by --devices 3; "
        "give a multiple of 3",
    ),
    (PRETRAIN, "", "{work}: no h5/pretrain_train.h5; run generate_h5_pretraining.py first"),
    (FINETUNE, "--init moco", "--init moco: neither random nor a stage of pretraining (global, random)"),
    (FINETUNE, "--contrasts t9", "--contrasts t9: not one of finetuning.contrasts (t1)"),
    (FINETUNE, "--subjects-n -1", f"{FINETUNE}.py: error: argument --subjects-n: -1: {AT_LEAST_1}"),
    (FINETUNE, "--repeats 0", f"{FINETUNE}.py: error: argument --repeats: 0: {AT_LEAST_1}"),
    (FINETUNE, "--only-repeats 7", "--only-repeats 7: there are 1, counted from 0"),
    (FINETUNE, "--folds 5", "--folds 5: there are 1, counted from 0"),
    (FINETUNE, "", "{work}/h5/annotated.h5: no such file; run generate_h5_pretraining.py first"),
    (TABLES, "", "{work}: no finetuning/*/*/n*/r*/metrics.json; run finetune_segmentation.py first"),
    ("tools.visualize_representations", "", "{work}: no h5/annotated.h5; run generate_h5_pretraining.py first"),
    (
        "tools.evaluate_constraint_maps",
        "--clusters 0",
        f"python -m tools.evaluate_constraint_maps: error: argument --clusters: 0: {AT_LEAST_1}",
    ),
    (MAPS, "--work-dir {config}", "work_dir: '{config}' is a file, not a folder; give another --work-dir"),
    (MAPS, "--work-dir {config}/work", "work_dir: '{config}' is a file, not a folder; give another --work-dir"),
    (MAPS, "--work-dir {link}", "work_dir: '{link}' is a link to nowhere; fix it, or give another --work-dir"),
    (MAPS, f"--work-dir {'x' * 300}", f"work_dir: '{'x' * 40}...' is longer than 255 bytes; give another --work-dir"),
]
OTHERS = [
    ("simulate_cohort", "--out {new}", "--subjects 0: expected at least 3, one each to train, validate and test"),
    ("simulate_cohort", "--out {config}", "--out: '{config}' is a file, not a folder; give another folder"),
    ("simulate_cohort", "--out {new} --jobs 0", "--jobs 0: expected at least 1"),
    ("simulate_cohort", "--out {new} --shape 1 1 1", "--shape 1 1 1: expected X Y Z of at least 8 8 2 voxels"),
    (
        "simulate_cohort",
        "--out {new} --anatomy heart",
        "simulate_cohort.py: error: argument --anatomy: invalid choice: 'heart' (choose from 'renal', 'brain_tumour')",
    ),
    ("predict", "", "predict.py: error: the following arguments are required: --model, --input, --output"),
    (
        "predict",
        "--model {new} --input {data} --output {new}",
        "--model {new}: no model.json there; give a cell folder of step 4 or a model in results/",
    ),
    (
        "predict",
        "--model {model} --input {new} --output {new}",
        "--input {new}: no such file or folder",
    ),
    (
        "predict",
        "--model {model} --input {data} --output {config}",
        "--output {config}: for a folder of scans give a folder",
    ),
    (
        "predict",
        "--model {model} --input {data} --output {new}.nii",
        "--output {new}.nii: for a folder of scans give a folder",
    ),
    (
        "predict",
        "--model {model} --input {data}/sub-1/t1.nii.gz --output {new}",
        "--output {new}: for one scan give a file that ends in .nii or .nii.gz",
    ),
    (
        "predict",
        "--model {model} --input {data}/sub-1/t1.nii.gz --output {data}/sub-1/t1.nii.gz",
        "--output {data}/sub-1/t1.nii.gz: is the scan itself; give another file",
    ),
    (
        "predict",
        "--model {model} --input {data}/sub-1/t1.nii.gz --output {config}/label.nii.gz",
        "--output: '{config}' is a file, not a folder; give another place",
    ),
    (MAPS, "", f"{MAPS}.py: error: the following arguments are required: --config"),
    (MAPS, "--config {new}", "{new}: no such config file"),
]


@pytest.fixture
def places(tmp_path):
    """Return a cohort, and names of paths for messages and command lines."""
    config = write_cohort(tmp_path)
    (tmp_path / "link").symlink_to("/nowhere/work")
    names = {"config": config, "data": tmp_path / "data", "work": tmp_path / "work", "link": tmp_path / "link"}
    return names | {"new": tmp_path / "new", "model": ROOT / "results" / "chaos_mr" / "model"}


def words_of(text, places):
    return [word.format(**places) for word in shlex.split(text)]


@pytest.mark.parametrize(
    ("script", "words", "line"), CASES, ids=[f"{script} {words[:40]}" for script, words, _ in CASES]
)
def test_a_mistake_on_the_command_line_is_named(script, words, line, places, tmp_path):
    if "constraint_maps=null" in words:
        words += " pretraining=null finetuning.inits=[random]"
    assert_refused(tmp_path, script, ["--config", places["config"], *words_of(words, places)], [line], **places)


@pytest.mark.parametrize(
    ("script", "words", "line"), OTHERS, ids=[f"{script} {words[:40]}" for script, words, _ in OTHERS]
)
def test_a_mistake_of_the_other_scripts_is_named(script, words, line, places, tmp_path):
    if script == "simulate_cohort":
        words += " --subjects 0" if line.startswith("--subjects") else " --subjects 3"
    if "t1.nii.gz" in words:
        pytest.importorskip("keras")
    assert_refused(tmp_path, script, words_of(words, places), [line], **places)


@pytest.mark.parametrize("script", [MAPS, PACK, PRETRAIN, FINETUNE, TABLES])
def test_a_work_dir_without_permission_is_refused(script, as_user):
    config, work = write_cohort(as_user), as_user / "work"
    work.mkdir()
    work.chmod(0o555)
    importlib.import_module(script)  # an ordinary user may not be allowed to read root's Python
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    line = "work_dir: no permission to write in '{work}'; change it, or give another --work-dir"
    assert_refused(as_user, script, ["--config", config], [line], work=work)


@pytest.mark.parametrize("script", [MAPS, "predict", "simulate_cohort"])
def test_refusals_from_the_shell(script, places, tmp_path):
    """The same in a separate process: exit code 2, one line, no traceback."""
    data = places["data"]
    (data / "sub-2" / "t1.nii.gz").write_bytes(b"")
    empty = f"sub-2: '{data}/sub-2/t1.nii.gz' is empty (0 bytes); copy or export it again"
    cases = {
        MAPS: (["--config", places["config"]], empty),
        "predict": (
            ["--model", places["model"], "--input", data, "--output", places["new"], "--set"],
            "predict.py: error: unrecognized arguments: --set",
        ),
        "simulate_cohort": (
            ["--out", places["config"]],
            f"--out: '{places['config']}' is a file, not a folder; give another folder",
        ),
    }
    words, line = cases[script]
    before = listing(tmp_path)
    command = [sys.executable, f"{script}.py", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    said = [text for text in without_usage(done.stderr) if "Checking scans" not in text]
    assert done.returncode == 2 and said == [line]
    assert listing(tmp_path) == before


def test_more_annotated_subjects_than_there_are(places, tmp_path):
    for step in (MAPS, PACK):
        assert run(step, "--config", places["config"]).code == 0
    line = "finetuning.subjects_n: 9 annotated subjects requested, but the training set has 1; choose at most 1"
    words = ["--config", places["config"], "--init", "random", "--subjects-n", 9]
    assert_refused(tmp_path, FINETUNE, words, [line])
    shutil.rmtree(tmp_path / "work" / "constraint_maps")
    assert_refused(tmp_path, FINETUNE, words, [line])
