"""All scripts on a small cohort of phantoms with oblique, flipped grids, in one process to load TensorFlow once.

The interrupted pretraining starts as a new process, as for users; test_snakefile.py starts all steps like that.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pandas
import pytest
import yaml

from data.scans.volumes import write_nifti
from tests.bad_input.harness import run
from tests.cheaply import steps_uncompiled

ROOT = Path(__file__).resolve().parents[1]
SUBJECTS = {"train": ["sub-01", "sub-02", "sub-03"], "val": ["sub-04"], "test": ["sub-05", "sub-06"]}
STEPS = (
    "generate_constraint_maps.py",
    "generate_h5_pretraining.py",
    "constrained_contrastive_learning.py",
    "finetune_segmentation.py",
    "reproduce_tables.py",
)


def succeed(script, *words):
    """Run a script in this process; returns its messages and output."""
    outcome = run(script.removesuffix(".py"), *words, seconds=400)
    assert outcome.code == 0, outcome.said
    return outcome


def refuse(script, message, *words):
    """Run a script in this process; it must end with exit code 2 and a line that contains the message."""
    outcome = run(script.removesuffix(".py"), *words)
    assert outcome.code == 2 and any(message in line for line in outcome.said), outcome
    assert "Traceback" not in "\n".join(outcome.said)


def write_phantom(folder, number):
    """Write a torso with a liver on the right and a kidney on each side, oblique, stored from either side."""
    generator = np.random.default_rng(number)
    shape = (34 + number % 2 * 2, 30, 6 + number % 3)
    flip = -1 if number % 2 else 1
    turn = np.radians(4)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([3.0 * flip, 3.0, 6.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    x, y, z = np.moveaxis(voxels @ affine[:3, :3].T + affine[:3, 3], -1, 0)
    body = (x / 45) ** 2 + (y / 36) ** 2 < 1
    label = np.zeros(shape, np.uint8)
    for value, side in ((1, 1), (2, -1)):  # 1: the patient's right (RAS x > 0)
        place = np.array([side * 22, -8, 0]) + generator.normal(0, 2, 3)
        size = generator.uniform(0.85, 1.15)
        inside = ((x - place[0]) / 10) ** 2 + ((y - place[1]) / 12) ** 2 + ((z - place[2]) / 15) ** 2 < size
        label[inside] = value
    tissue = np.where(label > 0, 3, np.where(x > 0, 2, 1)) * body
    for contrast, values in {"t1": [0, 400, 900, 100], "t2": [0, 200, 500, 900]}.items():
        image = np.array(values)[tissue] + generator.normal(0, 30, shape)
        write_nifti(folder / f"sub-{number:02d}" / f"{contrast}.nii.gz", np.abs(image).astype(np.float32), affine)
    write_nifti(folder / f"sub-{number:02d}" / "label.nii.gz", label, affine)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Return scans and a config for them."""
    folder = tmp_path_factory.mktemp("pipeline")
    for number in range(1, 7):
        write_phantom(folder / "scans", number)
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 0.003}
    config = {
        "name": "phantom",
        "seed": 7,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in ("t1", "t2")},
            "label": "{subject}/label.nii.gz",
            "labels": {"right_kidney": [1], "left_kidney": [2]},
            "splits": SUBJECTS,
            "simulated": True,
        },
        "constraint_maps": {"contrasts": ["t1", "t2"], "clusters": 5},
        "slices": {"image_size": [32, 32]},
        "network": {"filters": [8, 16, 16]},
        "pretraining": {
            "contrasts": ["t1"],
            "stages": {
                "global": {"method": "global", "training": dict(training)},
                "constrained": {"method": "constrained", "warm_start": "global", "training": training},
            },
        },
        "finetuning": {
            "contrasts": {"t1": ["t1"]},
            "subjects_n": [1, 3],
            "repeats": 1,
            "training": {"epochs": 10, "steps_per_epoch": 8, "batch_size": 8, "learning_rate": 0.01},
            "evaluate_every": 2,
        },
    }
    path = folder / "phantom.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(cohort):
    """Return the cohort after all five steps, with the outputs of the steps."""
    return cohort, [succeed(step, "--config", cohort) for step in STEPS]


def cell_of(cohort, init="constrained", n=3):
    return cohort.parent / "work" / "finetuning" / "t1" / init / f"n{n:02d}" / "r0"


def test_every_step_names_the_next_one(finished):
    _, done = finished
    for outcome, following in zip(done, STEPS[1:], strict=False):
        assert f"python {following} --config" in outcome.logged[-1]


def test_the_table_and_the_page_come_last(finished):
    cohort, done = finished
    *table, last = done[-1].printed
    page = Path(last.removeprefix("report: "))
    assert page.is_file() and "simulated" in page.read_text().lower()
    assert "±" in "\n".join(table) and "constrained" in "\n".join(table)


def test_metrics_follow_the_contract(finished):
    cohort, _ = finished
    metrics = json.loads((cell_of(cohort) / "metrics.json").read_text())
    assert {"config_hash", "seed", "contrasts", "init", "n_annotated", "repeat", "train_subjects"} <= set(metrics)
    rows = pandas.DataFrame(metrics["per_subject"])
    assert list(rows.subject) == ["sub-05", "sub-05", "sub-06", "sub-06"]
    columns = ["subject", "label", "dice", "hd95_mm", "surface_dice", "volume_ml", "volume_ml_reference"]
    assert list(rows.columns) == columns
    assert metrics["train_subjects"] == ["sub-01", "sub-02", "sub-03"] or set(metrics["train_subjects"]) == set(
        SUBJECTS["train"]
    )


def test_the_network_has_learned_and_knows_left_from_right(finished):
    cohort, _ = finished
    rows = pandas.DataFrame(json.loads((cell_of(cohort) / "metrics.json").read_text())["per_subject"])
    assert rows.dice.mean() > 0.7
    for subject in SUBJECTS["test"]:
        image = nibabel.load(cell_of(cohort) / "predictions" / f"{subject}.nii.gz")
        scan = nibabel.load(cohort.parent / "scans" / subject / "t1.nii.gz")
        np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
        assert image.shape == scan.shape and image.get_data_dtype().kind in "iu"
        for value, side in ((1, 1), (2, -1)):
            centre = np.argwhere(np.asarray(image.dataobj) == value).mean(0)
            assert np.sign(nibabel.affines.apply_affine(image.affine, centre)[0]) == side


def test_dice_of_metrics_is_that_of_the_stored_predictions(finished):
    cohort, _ = finished
    for row in json.loads((cell_of(cohort) / "metrics.json").read_text())["per_subject"]:
        value = {"right_kidney": 1, "left_kidney": 2}[row["label"]]
        predicted = np.asarray(nibabel.load(cell_of(cohort) / "predictions" / f"{row['subject']}.nii.gz").dataobj)
        true = np.asarray(nibabel.load(cohort.parent / "scans" / row["subject"] / "label.nii.gz").dataobj)
        both = np.sum((predicted == value) & (true == value))
        assert row["dice"] == pytest.approx(2 * both / (np.sum(predicted == value) + np.sum(true == value)))
        assert row["volume_ml"] == pytest.approx(np.sum(predicted == value) * 54 / 1000, rel=1e-4)


def test_predict_repeats_step_4_from_the_model_folder_alone(finished, tmp_path):
    cohort, _ = finished
    scan = cohort.parent / "scans" / "sub-06" / "t1.nii.gz"
    words = ["--model", cell_of(cohort), "--input", scan, "--output", tmp_path / "label.nii.gz"]
    succeed("predict.py", *words)
    predicted = nibabel.load(tmp_path / "label.nii.gz")
    expected = nibabel.load(cell_of(cohort) / "predictions" / "sub-06.nii.gz")
    np.testing.assert_array_equal(predicted.dataobj, expected.dataobj)
    volumes = pandas.read_csv(tmp_path / "volumes.csv").set_index("label")
    right = np.sum(np.asarray(expected.dataobj) == 1)
    assert volumes.loc["right_kidney", "voxels"] == right
    assert volumes.loc["right_kidney", "volume_ml"] == pytest.approx(right * 54 / 1000, abs=1e-3)
    succeed("predict.py", "--model", cell_of(cohort), "--input", scan.parents[1], "--output", tmp_path / "all")
    assert len(list((tmp_path / "all").glob("*.nii.gz"))) == 6
    assert "1 of 1 label maps exist and are kept" in "\n".join(succeed("predict.py", *words).logged)
    for model in (tmp_path, cell_of(cohort) / "weights.npz"):
        words = ["--model", model, "--input", scan, "--output", tmp_path / "other.nii.gz"]
        refuse("predict.py", "no model.json there", *words)


def test_finished_work_is_never_redone(finished):
    cohort, _ = finished
    work = cohort.parent / "work"
    kept = [*work.glob("constraint_maps/*.nii.gz"), *work.glob("h5/*.h5"), *work.glob("**/weights.npz")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 6 + 3 + 2 + 4
    for step in STEPS[:-1]:
        succeed(step, "--config", cohort)
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_pairs_share_their_subjects_and_small_sets_lie_in_large_ones(finished):
    cohort, _ = finished
    drawn = {
        (init, n): json.loads((cell_of(cohort, init, n) / "metrics.json").read_text())["train_subjects"]
        for init in ("random", "constrained")
        for n in (1, 3)
    }
    assert drawn["random", 1] == drawn["constrained", 1] and drawn["random", 3] == drawn["constrained", 3]
    assert set(drawn["random", 1]) < set(drawn["random", 3])


def test_test_subjects_are_in_no_pretraining_file(finished):
    from data.store.store import SliceStore

    cohort, _ = finished
    for part in ("train", "val"):
        assert SliceStore(cohort.parent / "work" / "h5" / f"pretrain_{part}.h5").subjects == SUBJECTS[part]


REFUSED = [
    ("constrained_contrastive_learning.py", "pretraining.stages.global.temperature=0.2", "made with another config"),
    ("finetune_segmentation.py", "finetuning.training.epochs=3", "made with another config"),
    ("finetune_segmentation.py", "slices.min_foreground=0.3", "annotated.h5: made with another config"),
    ("finetune_segmentation.py", "finetuning.subjects_n=[4]", "4 annotated subjects"),
    ("generate_h5_pretraining.py", "slices.min_foreground=0.3", "made with another config"),
]


@pytest.mark.parametrize(("script", "override", "message"), REFUSED, ids=[f"{s[:8]} {o}" for s, o, _ in REFUSED])
def test_results_of_another_config_are_never_mixed_in(finished, script, override, message):
    cohort, _ = finished
    refuse(script, message, "--config", cohort, "--set", override)


def test_pretraining_on_a_test_subject_is_refused(finished):
    cohort, _ = finished
    swapped = {"train": ["sub-05", "sub-02", "sub-03"], "val": ["sub-04"], "test": ["sub-01", "sub-06"]}
    config = yaml.safe_load(cohort.read_text())
    config["data"]["splits"] = swapped
    other = cohort.with_name("swapped.yaml")
    other.write_text(yaml.safe_dump(config, sort_keys=False))
    refuse("finetune_segmentation.py", "annotated.h5: made with another", "--config", other)


def test_every_method_runs_from_a_config_and_warm_starts_finetuning(finished):
    cohort, _ = finished
    config = yaml.safe_load(cohort.read_text())
    stages, training = config["pretraining"]["stages"], {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4}
    training["learning_rate"] = 0.003
    more = {
        "regression": {"method": "regression"},
        "global_anatomical": {"method": "global", "n_partitions": 2},
        "global_local": {"method": "local", "warm_start": "global", "decoder_levels": 1},
        "combined": {"method": "constrained", "warm_start": "regression", "comparison": "setwise", "patch_size": 2}
        | {"decoder_levels": 1, "background_patches": False, "anchor_is_positive": False},
    }
    stages |= {name: stage | {"training": dict(training)} for name, stage in more.items()}
    config["finetuning"]["training"] |= {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4}
    config["finetuning"]["evaluate_every"] = 1
    config["work_dir"] = str(cohort.parent / "methods")
    for folder in ("h5", "pretraining"):
        shutil.copytree(cohort.parent / "work" / folder, cohort.parent / "methods" / folder)
    path = cohort.with_name("methods.yaml")
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    with steps_uncompiled():  # each network takes a few steps
        succeed("constrained_contrastive_learning.py", "--config", path, "--method", *more)
        succeed("finetune_segmentation.py", "--config", path, "--init", *more, "--subjects-n", 1)
    encoder, decoder = 6, 3  # layers with a kernel: two convolutions per level, and one more in the decoder
    moved = {"regression": encoder + 2 * decoder, "global_anatomical": encoder}
    moved |= {"global_local": encoder + decoder, "combined": encoder + decoder}
    for init in more:
        metrics = json.loads((path.parent / f"methods/finetuning/t1/{init}/n01/r0/metrics.json").read_text())
        assert metrics["init"] == init and len(metrics["per_subject"]) == 4
        log = (path.parent / f"methods/finetuning/t1/{init}/n01/r0/run.log").read_text()
        assert f"{2 * moved[init]} layers moved" in log  # each convolution has its normalisation
    started = (path.parent / "methods/pretraining/combined/run.log").read_text()
    assert "warm start from" in started and "layers moved" in started
    assert re.search(r"trains on .+ with \w+ [\d.]+\S* in float32\n", started)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda sent: sent.name)
def test_a_stopped_pretraining_resumes(finished, tmp_path, sent):
    """One interruption of a new process; reliability/test_kills.py has more, in every step."""
    cohort, _ = finished
    work = tmp_path / "work"
    (work / "h5").mkdir(parents=True)
    for name in ("pretrain_train.h5", "pretrain_val.h5"):
        os.link(cohort.parent / "work" / "h5" / name, work / "h5" / name)
    words = ["--config", cohort, "--work-dir", work, "--method", "global"]
    command = [sys.executable, ROOT / "constrained_contrastive_learning.py", *words]
    stage = work / "pretraining" / "global"
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not (stage / "run.log").exists():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(sent)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == (130 if sent == signal.SIGTERM else -sent)
    assert ("rerun the command to resume" in errors) == (sent == signal.SIGTERM)
    assert not (stage / "weights.npz").exists()
    succeed("constrained_contrastive_learning.py", *words)
    ours, theirs = (np.load(w / "pretraining" / "global" / "weights.npz") for w in (work, cohort.parent / "work"))
    for name in ours.files:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_missing_steps_are_named(cohort, tmp_path):
    for script, message in (
        ("constrained_contrastive_learning.py", "run generate_h5_pretraining.py first"),
        ("finetune_segmentation.py", "run generate_h5_pretraining.py first"),
        ("reproduce_tables.py", "run finetune_segmentation.py first"),
    ):
        refuse(script, message, "--config", cohort, "--work-dir", tmp_path)


def test_an_empty_data_folder_is_named(cohort, tmp_path):
    for script in STEPS[:2]:
        words = ["--config", cohort, "--work-dir", tmp_path, "--set", f"data.root={tmp_path}"]
        refuse(script, "check data.root", *words)
    assert list(tmp_path.iterdir()) == []


def golden_numbers(work):
    """Return a few numbers from every step; a change to them would change published results."""
    summary = pandas.read_csv(work / "constraint_maps" / "summary.csv").set_index("subject")
    with h5py.File(work / "h5" / "pretrain_train.h5") as file:
        packed = {"slices": len(file["img"]), "mean_intensity": float(file["img"][:].astype(float).mean())}
    losses = {
        stage: pandas.read_csv(work / "pretraining" / stage / "history.csv").val_loss.tolist()
        for stage in ("global", "constrained")
    }
    cell = pandas.read_csv(work / "finetuning" / "t1" / "constrained" / "n03" / "r0" / "history.csv")
    maps = {name: [row.foreground, row.inertia] for name, row in summary.iterrows()}
    return {"maps": maps, "packed": packed, "pretraining": losses, "finetuning": cell.val_loss.dropna().tolist()[:2]}


def test_numbers_have_not_changed(finished):
    """After an intended change: UPDATE_GOLDEN=1 python -m pytest tests/test_pipeline.py -k have_not_changed"""
    cohort, _ = finished
    path, found = Path(__file__).parent / "golden" / "phantom.json", golden_numbers(cohort.parent / "work")
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(path.read_text())
    for name, values in stored["maps"].items():
        assert found["maps"][name] == pytest.approx(values, rel=1e-3)
    assert found["packed"] == pytest.approx(stored["packed"], rel=1e-4)
    for stage, values in stored["pretraining"].items():
        assert found["pretraining"][stage] == pytest.approx(values, rel=2e-2)  # rounding differs between processors
    assert found["finetuning"] == pytest.approx(stored["finetuning"], rel=0.1)
