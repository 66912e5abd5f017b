"""Step 4 with a fixed schedule on the phantom: no validation subject selects weights; dead classes are named."""

import json
import logging

import nibabel
import numpy as np
import pytest
import yaml
from scipy import ndimage

import finetune_segmentation
import generate_constraint_maps
import generate_h5_pretraining
import predict
import reproduce_tables
from tests.test_pipeline import SUBJECTS, write_phantom
from training.loop import Keeper
from utils.checks import InputError

FIXED = {"schedule": "poly", "keep": "last", "head_first": 0.25, "head_learning_rate": 2e-2, "warm_up": 0.1}
LAST_STAGES = {"head_block": True, "fresh_levels": 1}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a function that gives packed slices of a cohort with or without a labelled validation subject."""
    folder = tmp_path_factory.mktemp("schedules")
    for number in range(1, 7):
        write_phantom(folder / "scans", number)

    def prepare(name, is_annotated, **finetuning):
        training = {"epochs": 12, "steps_per_epoch": 8, "batch_size": 8, "learning_rate": 0.01}
        config = {
            "name": name,
            "seed": 7,
            "work_dir": str(folder / name),
            "data": {
                "root": str(folder / "scans"),
                "contrasts": {contrast: f"{{subject}}/{contrast}.nii.gz" for contrast in ("t1", "t2")},
                "label": "{subject}/label.nii.gz",
                "labels": {"right_kidney": [1], "left_kidney": [2]},
                "splits": SUBJECTS,
            },
            "constraint_maps": {"contrasts": ["t1", "t2"], "clusters": 5},
            "slices": {"image_size": [32, 32]},
            "network": {"filters": [8, 16]},
            "finetuning": {
                "contrasts": {"t1": ["t1"]},
                "inits": ["random"],
                "subjects_n": [3],
                "repeats": 1,
                "loss": {"name": "dice", "cross_entropy": "plain", "cross_entropy_weight": 0.5},
                "training": training | finetuning.pop("training", {}),
            }
            | finetuning,
            "evaluation": {"lesions": ["left_kidney"]},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        label = folder / "scans" / "sub-04" / "label.nii.gz"
        hidden = label.with_name("hidden.nii.gz")
        if not is_annotated:
            label.rename(hidden)
        try:
            generate_constraint_maps.main(["--config", str(path)])
            generate_h5_pretraining.main(["--config", str(path)])
        finally:
            if hidden.exists():
                hidden.rename(label)
        return path, folder / name / "finetuning" / "t1" / "random" / "n03" / "r0", label

    return prepare


@pytest.fixture
def one_trainer(monkeypatch):
    """Let runs of one config share a trainer, as cells of one run do; compiling takes longer than training here."""
    built, build = {}, finetune_segmentation.build_trainer

    def build_once(config, channels, settings):
        key = config.name, channels, repr(settings)
        return built.setdefault(key, built.get(key) or build(config, channels, settings))

    monkeypatch.setattr(finetune_segmentation, "build_trainer", build_once)
    return built


def test_a_cell_without_annotated_validation_subjects(prepared, capsys):
    path, cell, label = prepared("blind", is_annotated=False, training=FIXED, **LAST_STAGES)
    label.rename(label.with_name("away.nii.gz"))
    try:
        with pytest.raises(InputError, match="no subject of the split/val has a label map"):
            finetune_segmentation.main(["--config", str(path), "--set", "finetuning.training.keep=best"])
        assert not finetune_segmentation.main(["--config", str(path)])
    finally:
        label.with_name("away.nii.gz").rename(label)
    metrics = json.loads((cell / "metrics.json").read_text())
    assert metrics["n_selecting"] == 0 and metrics["validation_subjects"] == [] and "validation_dice" not in metrics
    assert np.mean([row["dice"] for row in metrics["per_subject"]]) > 0.3
    history = (cell / "history.csv").read_text().splitlines()
    assert "val_loss" not in history[0] and len(history) == 13
    reproduce_tables.main(["--config", str(path)])
    table = (cell.parents[4] / "report" / "tables" / "dice.md").read_text()
    assert "| Selecting |" in table and "| t1 | random | 3 | 0 |" in table
    lesions_are_those_of_the_predictions(metrics["per_subject"], cell, label.parents[1])
    # The network with its head block is rebuilt from model.json, and gives the predictions that were scored.
    assert json.loads((cell / "model.json").read_text())["head_block"] is True
    scan, out = label.parents[1] / "sub-05" / "t1.nii.gz", cell.parents[4] / "again.nii.gz"
    predict.main(["--model", str(cell), "--input", str(scan), "--output", str(out)])
    again, scored = (np.asarray(nibabel.load(file).dataobj) for file in (out, cell / "predictions" / "sub-05.nii.gz"))
    np.testing.assert_array_equal(again, scored)


def lesions_are_those_of_the_predictions(rows, cell, scans):
    """Check that the lesion label has counts, a table and a figure, and that the other label has none."""
    assert not [row for row in rows if "lesion_f1" in row and row["label"] != "left_kidney"]
    for row in (row for row in rows if row["label"] == "left_kidney"):
        files = scans / row["subject"] / "label.nii.gz", cell / "predictions" / f"{row['subject']}.nii.gz"
        masks = [np.asarray(nibabel.load(file).dataobj) == 2 for file in files]
        reference, found = (ndimage.label(mask, np.ones((3, 3, 3)))[1] for mask in masks)
        assert row["lesions_reference"] == reference == 1
        assert row["lesions_detected"] + row["lesions_false_positive"] == found > 0
        assert row["lesion_f1"] == pytest.approx(2 * row["lesions_detected"] / (1 + found))
    report = cell.parents[4] / "report"
    assert "| t1 | random | 3 | 0 |" in (report / "tables" / "lesion_f1.md").read_text()
    assert (report / "figures" / "lesions_false_positive_against_n.png").exists()


def test_dead_classes_cause_a_warning_and_an_interrupted_cell_resumes(prepared, one_trainer, caplog, monkeypatch):
    training = FIXED | {"epochs": 4}
    path, cell, _ = prepared("seen", is_annotated=True, training=training, **LAST_STAGES)
    for stop in (1, 3):  # during the head phase, and after it
        report = Keeper._report

        def interrupt(keeper, epoch, row, stop=stop, report=report):
            if epoch == stop + 1:
                raise KeyboardInterrupt
            report(keeper, epoch, row)

        with monkeypatch.context() as context:
            context.setattr(Keeper, "_report", interrupt)
            with pytest.raises(KeyboardInterrupt):
                finetune_segmentation.main(["--config", str(path)])
    finetune_segmentation.main(["--config", str(path)])
    metrics = json.loads((cell / "metrics.json").read_text())
    weights = (cell / "weights.npz").read_bytes()
    assert metrics["n_selecting"] == 0 and metrics["validation_subjects"] == ["sub-04"]
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mrccl"):
        finetune_segmentation.main(["--config", str(path), "--overwrite"])
    assert (cell / "weights.npz").read_bytes() == weights
    assert len(one_trainer) == 1
    dice = metrics["validation_dice"]
    assert dice == json.loads((cell / "metrics.json").read_text())["validation_dice"]
    assert list(dice) == ["right_kidney", "left_kidney"] and all(0 <= value <= 1 for value in dice.values())
    named = [record.getMessage() for record in caplog.records if "is dead" in record.getMessage()]
    assert len(named) == sum(value < 0.2 for value in dice.values())
    assert all(any(f"'{name}' is dead" in line for line in named) == (value < 0.2) for name, value in dice.items())
