"""python -m tools.run_nnunet: cells, settings and scores, with a stand-in for nnU-Net and with nnU-Net itself."""

import json
import stat
import sys

import pytest
import yaml

from tests.bad_input.harness import ROOT, assert_refused, listing, run
from tests.cohort import CONFIG, FIRST_FOUR, write_cohort, write_config
from tools._nnunet import matched

TOOL, PYTHON = "tools.run_nnunet", ROOT / ".venv-nnunet/bin/python"
FINETUNING = {"steps_per_epoch": 3, "epochs": 2, "batch_size": 2, "learning_rate": 0.001}
# Prepares nothing, and predicts by copying the references that were exported beside the test images.
STAND_IN = """#!{python}
import json, os, shutil, sys
from pathlib import Path

script, command, path, *rest = sys.argv[1:]
settings = json.loads(Path(path).read_text())
raw = Path(os.environ["nnUNet_raw"]) / settings["dataset"]
if command == "prepare":
    folder = Path(os.environ["nnUNet_preprocessed"]) / settings["dataset"]
    folder.mkdir(parents=True)
    shutil.copy(raw / "splits_final.json", folder)
elif "fails" in os.environ.get("STAND_IN", ""):
    raise SystemExit("no memory left")
else:
    fold, images, output = rest
    shutil.copytree(Path(images).with_name(Path(images).name.replace("images", "labels")), output)
    times = {{"version": "2.8.1", "device": "cpu", "slices_per_second": 41.7, "seconds": 9.0, "epochs": 2}}
    (Path(output) / "times.json").write_text(json.dumps(times))
"""


@pytest.fixture
def study(tmp_path):
    """Return the tiny cohort after two steps, with a fixed number of updates."""
    write_cohort(tmp_path, finetuning=CONFIG["finetuning"] | {"training": FINETUNING, "repeats": 2})
    for step in FIRST_FOUR[:2]:
        assert run(step, "--config", tmp_path / "tiny.yaml").code == 0
    return tmp_path


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def train(study, python, *words):
    return run(TOOL, "--config", study / "tiny.yaml", "--python", python, *words, seconds=400)


def test_every_cell_is_trained_and_scored_once(study, stand_in):
    outcome = train(study, stand_in)
    assert outcome.code == 0, outcome.said
    cells = [study / f"work/finetuning/t1/nnunet/n01/r{repeat}" for repeat in (0, 1)]
    for cell in cells:
        metrics = json.loads((cell / "metrics.json").read_text())
        assert metrics["init"] == "nnunet" and metrics["n_selecting"] == 0
        assert [row["dice"] for row in metrics["per_subject"] if row["label"] == "kidney"] == [1.0]
        assert "2 epochs of 3 updates" in metrics["external"]["note"] and "42 slices" in metrics["external"]["note"]
    before = listing(study / "work/finetuning")
    assert train(study, stand_in).code == 0 and listing(study / "work/finetuning") == before
    settings = json.loads((study / "work/nnunet/Dataset501_tiny_t1.json").read_text())
    assert settings["filters"] == CONFIG["network"]["filters"] and settings["image_size"] == [16, 16]
    assert (settings["epochs"], settings["steps_per_epoch"], settings["batch_size"]) == (2, 3, 2)


def test_cells_may_be_chosen_and_a_failure_shows_its_last_lines(study, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN", "fails")
    outcome = train(study, stand_in, "--repeats", 1)
    assert outcome.code == 2 and "this command failed" in outcome.said[0] and outcome.said[-1] == "no memory left"
    monkeypatch.delenv("STAND_IN")
    assert train(study, stand_in, "--repeats", 1).code == 0
    assert [path.name for path in (study / "work/finetuning/t1/nnunet/n01").iterdir()] == ["r0"]


def test_mistakes_are_reported_together(study, stand_in):
    words = ["--config", study / "tiny.yaml", "--python", study / "none", "--contrasts", "t3", "--subjects-n", 5]
    lines = [
        "--python {study}/none: does not exist; type: make install-nnunet",
        "--contrasts t3: not one of t1 (finetuning)",
        "--subjects-n 5: not one of 1 (finetuning)",
    ]
    assert_refused(study, TOOL, words, lines, study=study)
    write_config(study)
    line = "finetuning.training.steps_per_epoch: is not set, so that the number of updates depends on N; set it"
    assert_refused(study, TOOL, ["--config", study / "tiny.yaml", "--python", stand_in], [line])


def test_only_network_patch_spacing_and_batch_of_a_plan_are_ours():
    arguments = {"n_stages": 7, "strides": [], "conv_op": "theirs", "features_per_stage": [32] * 7}
    plan = {"patch_size": [256, 224], "spacing": [1.0, 1.0], "batch_size": 49, "batch_dice": True}
    plan |= {"architecture": {"network_class_name": "theirs", "arch_kwargs": arguments}}
    ours = {"filters": [8, 16, 32], "image_size": [64, 80], "pixel_mm": 5.0, "batch_size": 12}
    found = matched(json.loads(json.dumps(plan)), ours)
    assert found["patch_size"] == [80, 64] and found["spacing"] == [5.0, 5.0] and found["batch_size"] == 12
    assert found["architecture"]["arch_kwargs"] == {
        "n_stages": 3,
        "strides": [[1, 1], [2, 2], [2, 2]],
        "conv_op": "theirs",
        "features_per_stage": [8, 16, 32],
        "kernel_sizes": [[3, 3]] * 3,
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    assert found["batch_dice"] is True and found["architecture"]["network_class_name"] == "theirs"
    assert matched(json.loads(json.dumps(plan)), ours | {"pixel_mm": None})["spacing"] == [1.0, 1.0]


@pytest.mark.skipif(not PYTHON.exists(), reason="nnU-Net is not installed; type: make install-nnunet")
def test_nnunet_itself_trains_a_cell_and_resumes_after_a_kill(study):
    config = yaml.safe_load((study / "tiny.yaml").read_text())
    config["slices"]["image_size"] = [16, 16]
    outcome = train(study, PYTHON, "--repeats", 1)
    assert outcome.code == 0, outcome.said
    metrics = json.loads((study / "work/finetuning/t1/nnunet/n01/r0/metrics.json").read_text())
    assert metrics["train_subjects"] == ["sub-1"] and "nnU-Net 2.8.1" in metrics["external"]["note"]
    said = (study / "work/nnunet/predictions/Dataset501_tiny_t1/0.log").read_text()
    assert "Epoch 1" in said and "Training done" in said
