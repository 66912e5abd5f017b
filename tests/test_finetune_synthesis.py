"""Contrast synthesis from scans to scores, in slices and volumes, on a simulated cohort with differing grids."""

import json
import logging
import math
import os
import shutil

import nibabel
import numpy as np
import pytest
import yaml

import constrained_contrastive_learning
import finetune_synthesis
import generate_constraint_maps
import generate_h5_pretraining
import simulate_cohort
from data.intensity import foreground_mask
from data.layouts.subjects import find_subjects
from data.splits import hash_of_split, make_splits
from data.store.store import SliceStore
from models.weights import read_weights, save_weights
from tests.cheaply import steps_uncompiled
from training.cells import Cell
from training.loop import Keeper, RunOptions
from utils.checks import InputError
from utils.config.data import Wanted
from utils.config.load import load_config

CONTRASTS = ["t1", "t1gd", "t2", "flair"]
SUBJECTS = [f"sub-00{number}" for number in range(1, 7)]
SPLIT = {"train": SUBJECTS[:3], "val": SUBJECTS[3:4], "test": SUBJECTS[4:]}
DEPTHS = {"sub-002": 6, "sub-006": 3}  # slices; the others have 10
CROPS = {2: [16, 12], 3: [16, 12, 4]}
TARGETS = ["t1", "t2"]


def write_scans(folder):
    """Write a cohort in which one training and one test subject have few slices and the other test scan is oblique."""
    shape = ["--shape", "24", "28", "10"]
    simulate_cohort.main(["--out", str(folder), "--subjects", "6", "--anatomy", "brain_tumour", "--seed", "5", *shape])
    for subject, depth in DEPTHS.items():
        for path in (folder / subject).glob("*.nii.gz"):
            image = nibabel.load(path)
            nibabel.save(image.slicer[:, :, 3 : 3 + depth], path)
    for path in (folder / "sub-005").glob("*.nii.gz"):
        image = nibabel.load(path)
        turn = nibabel.orientations.axcodes2ornt("PLI")
        values = np.asarray(image.dataobj)
        image = nibabel.Nifti1Image(values, image.affine, image.header)
        nibabel.save(
            image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), turn)), path
        )


def write_config(folder, rank):
    training = {"epochs": 6, "steps_per_epoch": 6, "batch_size": 4, "learning_rate": 0.01}
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(folder / f"work{rank}"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS},
            "splits": SPLIT,
            "simulated": True,
        },
        "constraint_maps": {"contrasts": CONTRASTS, "clusters": 5},
        "slices": {"image_size": [32, 28]},
        "network": {"filters": [4, 8], "rank": rank},
        "crops": {"size": CROPS[rank]},
        "pretraining": {
            "contrasts": ["t1gd", "flair"],
            "stages": {"constrained": {"method": "constrained", "patch_size": 2, "training": training | {"epochs": 2}}},
        },
        "synthesis": {
            "inputs": ["t1gd", "flair"],
            "targets": TARGETS,
            "subjects_n": [1, 2],
            "repeats": 1,
            "training": training,
            "evaluate_every": 2,
        },
    }
    path = folder / f"rank{rank}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return the folder of scans, constraint maps and packed volumes of both configs."""
    folder = tmp_path_factory.mktemp("synthesis")
    write_scans(folder / "scans")
    words = ["--config", str(write_config(folder, 2))]
    generate_constraint_maps.main(words)
    generate_h5_pretraining.main(words)
    write_config(folder, 3)
    shutil.copytree(folder / "work2", folder / "work3")
    return folder


@pytest.fixture(scope="module", params=[2, 3])
def finished(request, packed):
    """Return config and work dir after steps 3 and 4."""
    words = ["--config", str(packed / f"rank{request.param}.yaml")]
    constrained_contrastive_learning.main(words)
    logging.getLogger("mrccl").setLevel("INFO")  # for run.log; scripts started from a shell set it
    assert finetune_synthesis.main(words) == 0
    return packed / f"rank{request.param}.yaml", packed / f"work{request.param}"


def run(config, *words):
    return finetune_synthesis.main(["--config", str(config), *map(str, words)])


def cell_of(work, init="constrained", n=2):
    return work / "synthesis" / init / f"n{n:02d}" / "r0"


def read(cell):
    return json.loads((cell / "metrics.json").read_text())


def acquired(config, subject, contrast):
    return nibabel.load(config.parent / "scans" / subject / f"{contrast}.nii.gz")


def test_the_grid_is_complete_and_says_what_it_is_made_of(finished):
    config, work = finished
    assert len(list(work.rglob("metrics.json"))) == 4
    drawn = {}
    for init in ("random", "constrained"):
        for n in (1, 2):
            cell, settings = cell_of(work, init, n), load_config(config)
            metrics = read(cell)
            assert {name: metrics[name] for name in ("init", "n_annotated", "repeat", "seed", "split", "mask")} == {
                "init": init,
                "n_annotated": n,
                "repeat": 0,
                "seed": 3,
                "split": "",
                "mask": "found",
            }
            assert metrics["config_hash"] == settings.hash_of_synthesis(init)
            assert (metrics["inputs"], metrics["targets"]) == (["t1gd", "flair"], TARGETS)
            assert metrics["validation_subjects"] == ["sub-004"] and metrics["annotated_available"] == 3
            assert metrics["duration_s"] > 0 and metrics["compile_s"] >= 0
            drawn[init, n] = metrics["train_subjects"]
            written = {path.name for path in cell.iterdir()}
            assert {"weights.npz", "history.csv", "model.json", "resolved_config.yaml", "command.txt"} <= written
            assert "checkpoint.npz" not in written and not list(cell.rglob(".tmp*"))
            predicted = {path.name for path in (cell / "predictions").iterdir()}
            assert predicted == {f"{subject}_{target}.nii.gz" for subject in SPLIT["test"] for target in TARGETS}
    assert drawn["random", 1] == drawn["constrained", 1] and drawn["random", 2] == drawn["constrained", 2]
    assert set(drawn["random", 1]) < set(drawn["random", 2]) < set(SPLIT["train"])


def test_model_json_holds_what_predicting_needs(finished):
    config, work = finished
    model, settings = json.loads((cell_of(work) / "model.json").read_text()), load_config(config)
    assert model["contrasts"] == ["t1gd", "flair"] and model["targets"] == TARGETS and model["simulated"] is True
    assert model["crop_size"] == CROPS[settings.network.rank] and model["overlap"] == 0.5
    assert model["percentiles"] == [1, 99] and model["slices"]["image_size"] == [32, 28] and model["mask"] is None
    assert model["files"] == {name: f"{{subject}}/{name}.nii.gz" for name in CONTRASTS}
    assert model["config_hash"] == settings.hash_of_synthesis("constrained")
    assert model["trained_on"] == read(cell_of(work))["train_subjects"]
    for target, ranges in model["target_intensities"].items():
        assert set(ranges) == set(model["trained_on"])
        for subject, ends in ranges.items():
            assert ends == pytest.approx(percentiles(config, subject, target), rel=1e-4)
    weights, _ = read_weights(cell_of(work) / "weights.npz")
    assert weights["encoder_1_conv_1/kernel"].shape == (3,) * settings.network.rank + (2, 4)
    assert weights["synthesis_conv/kernel"].shape[-1] == 2


def percentiles(config, subject, contrast):
    """Return the two intensities that are mapped to 0 and 1, from the file alone."""
    values = acquired(config, subject, contrast).get_fdata().astype(np.float32)
    return np.percentile(values[foreground_mask(values[..., None])], [1, 99])


def head_of(config, work, subject):
    """Return the foreground of the constraint map from step 1."""
    return np.asarray(nibabel.load(work / "constraint_maps" / f"{subject}.nii.gz").dataobj) > 0


def test_the_scores_are_those_of_the_written_predictions_against_the_acquired_scans(finished):
    config, work = finished
    for cell in (cell_of(work), cell_of(work, "random", 1)):
        rows = read(cell)["per_subject"]
        assert [(row["subject"], row["label"]) for row in rows] == [(s, t) for s in SPLIT["test"] for t in TARGETS]
        for row in rows:
            low, high = row["intensity_low"], row["intensity_high"]
            assert (low, high) == pytest.approx(percentiles(config, row["subject"], row["label"]), rel=1e-4)
            image = nibabel.load(cell / "predictions" / f"{row['subject']}_{row['label']}.nii.gz")
            true = acquired(config, row["subject"], row["label"])
            assert image.shape == true.shape and image.get_data_dtype() == np.uint16
            np.testing.assert_allclose(image.affine, true.affine, atol=1e-4)
            predicted = (image.get_fdata() - low) / (high - low)
            assert predicted.min() >= -1e-6 and predicted.max() <= 1 + 1e-6
            squared = (predicted - np.clip((true.get_fdata() - low) / (high - low), 0, 1)) ** 2
            head = head_of(config, work, row["subject"])
            assert 0.1 < head.mean() < 0.9
            for mse, mark in ((squared.mean(), ""), (squared[head].mean(), "_mask")):
                assert row[f"mse{mark}"] == pytest.approx(mse, rel=1e-3)
                assert row[f"psnr_db{mark}"] == pytest.approx(-10 * math.log10(mse), abs=0.01)
                assert -1 < row[f"ssim{mark}"] < 1
            assert row["data_range"] == 1.0


def test_what_is_synthesised_lies_where_the_head_lies(finished):
    config, work = finished
    for row in read(cell_of(work))["per_subject"]:
        image = nibabel.load(cell_of(work) / "predictions" / f"{row['subject']}_{row['label']}.nii.gz")
        predicted, true = image.get_fdata(), acquired(config, row["subject"], row["label"]).get_fdata()
        assert np.corrcoef(predicted.ravel(), true.ravel())[0, 1] > 0.5
        for axis in (0, 1):
            rolled = np.roll(predicted, 3, axis)
            assert np.abs(predicted - true).mean() < np.abs(rolled - true).mean()
    assert nibabel.aff2axcodes(acquired(config, "sub-005", "t1").affine) == ("P", "L", "I")
    losses = np.genfromtxt(cell_of(work) / "history.csv", delimiter=",", names=True)
    assert losses["loss"][-1] < 0.8 * losses["loss"][0]


def test_pretrained_cells_start_from_the_pretrained_network(finished):
    config, work = finished
    log = (cell_of(work) / "run.log").read_text()
    assert "layers moved" in log and "left as initialised: synthesis_hidden, synthesis_conv" in log
    assert "random initialisation" in (cell_of(work, "random") / "run.log").read_text()
    _, metadata = read_weights(work / "pretraining" / "constrained" / "weights.npz")
    assert metadata["seen"] == sorted(SPLIT["train"] + SPLIT["val"])


def test_finished_cells_are_kept_and_those_of_another_config_refused(finished):
    config, work = finished
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    assert run(config) == 0
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before
    for change in ("synthesis.loss.name=mse", "crops.min_foreground=0.5", "synthesis.overlap=0.25"):
        with pytest.raises(InputError, match=r"r0: made with another config; give --overwrite, or another"):
            run(config, "--init", "random", "--set", change)
    with pytest.raises(InputError, match="constrained/weights.npz: made with another config; run step 3 again"):
        run(config, "--set", "pretraining.stages.constrained.temperature=0.2")
    with pytest.raises(InputError, match="volumes.h5: made with another config; make it again"):
        run(config, "--set", "slices.min_foreground=0.3")
    with pytest.raises(InputError, match="volumes.h5: made with another seed; make it again"):
        run(config, "--set", "seed=4")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def elsewhere(packed, tmp_path, rank=3):
    """Return a config of the same cohort with a separate work dir in which steps 1 and 2 are done."""
    shutil.copytree(packed / f"work{rank}" / "h5", tmp_path / "work" / "h5", copy_function=os.link)
    return packed / f"rank{rank}.yaml", "--work-dir", str(tmp_path / "work"), "--init", "random"


@pytest.mark.parametrize("finished", [3], indirect=True)
def test_an_interrupted_cell_ends_like_one_that_went_through(finished, packed, tmp_path, monkeypatch):
    _, work = finished
    config, *words = elsewhere(packed, tmp_path)
    command = ["--config", str(config), *words, "--subjects-n", "2"]
    through, cell = cell_of(work, "random"), cell_of(tmp_path / "work", "random")
    monkeypatch.setattr("training.loop.SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    report, epochs = Keeper._report, []

    def interrupt_once(keeper, epoch, row):
        epochs.append(epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        report(keeper, epoch, row)

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Keeper, "_report", interrupt_once)
    with pytest.raises(KeyboardInterrupt):
        finetune_synthesis.main(command)
    assert (cell / "checkpoint.npz").exists()
    with monkeypatch.context() as patched:
        patched.setattr(finetune_synthesis.Syntheses, "score", interrupt)
        with pytest.raises(KeyboardInterrupt):
            finetune_synthesis.main(command)
    assert not (cell / "metrics.json").exists()
    assert finetune_synthesis.main(command) == 0
    assert epochs == [1, 2, 3, 4, 4, 5, 6], "each epoch but the interrupted one is trained once"
    assert not (cell / "checkpoint.npz").exists()
    (weights, _), (expected, _) = (read_weights(folder / "weights.npz") for folder in (cell, through))
    assert set(weights) == set(expected)
    for name in weights:
        np.testing.assert_array_equal(weights[name], expected[name])
    assert read(cell)["per_subject"] == read(through)["per_subject"]
    for path in (cell / "predictions").iterdir():
        image, expected = (nibabel.load(folder / "predictions" / path.name) for folder in (cell, through))
        np.testing.assert_array_equal(image.get_fdata(), expected.get_fdata())


def test_a_cell_is_shown_its_own_subjects_and_validated_on_others(packed):
    config = load_config(packed / "rank3.yaml")
    data, store = config.plain()["data"], SliceStore(packed / "work3" / "h5" / "volumes.h5")
    files = find_subjects(Wanted(config.data.root, data["contrasts"]))
    [split] = make_splits(data["splits"], config.data.root, files, config.seed)
    cells, given = finetune_synthesis.Syntheses(config, split, files, store), {}

    class Trainer:
        def train(self, crops, validation, run):
            given.update(seed=run.seed, subjects=run.subjects, train=crops, val=validation)

    seed = cells.seed_of(Cell("constrained", 2, 1))
    run = RunOptions(packed, "tag", "cell", seed)
    cells.train(Trainer(), Cell("constrained", 2, 1), ("sub-003", "sub-001"), run)
    assert given["subjects"] == (("sub-003", "sub-001"), ["sub-004"])
    assert [volume.subject for volume in given["train"].volumes] == ["sub-003", "sub-001"]
    assert [volume.subject for volume in given["val"].volumes] == ["sub-004"] and given["seed"] == seed
    for crops in (given["train"], given["val"]):
        assert crops.size == (16, 12, 4) and (crops.inputs, crops.targets) == (["t1gd", "flair"], TARGETS)
    # Cells that differ only in their initialisation see the same crops in the same order.
    assert seed == cells.seed_of(Cell("random", 2, 1)) != cells.seed_of(Cell("random", 2, 0))


def test_pretraining_that_saw_a_test_subject_is_refused(packed, tmp_path):
    import keras

    config, *words = elsewhere(packed, tmp_path)
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    about = {"config_hash": load_config(config).hash_of_stage("constrained"), "contrasts": ["t1gd", "flair"]}
    about |= {"seen": ["sub-001", "sub-006"], "split_hash": hash_of_split(SPLIT)}
    weights = tmp_path / "work" / "pretraining" / "constrained" / "weights.npz"
    save_weights(network, weights, **about)
    with pytest.raises(InputError, match="^sub-006: test subject, but 'constrained' was pretrained on it$"):
        run(config, *words[:-1], "constrained")
    weights.unlink()
    with pytest.raises(InputError, match="constrained/weights.npz: no such file; run constrained_contrastive"):
        run(config, *words[:-1], "constrained")


def test_mistakes_are_named_before_anything_is_trained(packed, tmp_path):
    config, *words = elsewhere(packed, tmp_path)
    with pytest.raises(InputError) as caught:
        run(config, *words, "--set", "crops.size=[16, 12, 8]")
    [line] = caught.value.lines
    assert line.startswith("sub-002: a crop of (16, 12, 8) does not fit into (32, 28) pixels and 6 packed slices")
    assert line.endswith("volumes.h5); use a smaller crop")
    with pytest.raises(
        InputError, match="^synthesis.subjects_n: 4 annotated subjects requested, but the training set has 3; choose"
    ):
        run(config, *words, "--subjects-n", "4")
    (tmp_path / "scans").mkdir()
    for subject in SUBJECTS:
        shutil.copytree(packed / "scans" / subject, tmp_path / "scans" / subject, copy_function=os.symlink)
    (tmp_path / "scans" / "sub-005" / "t2.nii.gz").unlink()
    with pytest.raises(InputError, match="sub-005: contrast 't2' is missing: no file '.*sub-005/t2.nii.gz'; add it"):
        run(config, *words, "--set", f"data.root={tmp_path / 'scans'}")
    with pytest.raises(InputError, match="sub-005: contrast 't2' is missing"):
        generate_h5_pretraining.main(["--config", str(config), "--set", f"data.root={tmp_path / 'scans'}"])
    with pytest.raises(InputError, match="this step needs the section 'synthesis:'"):
        run(config, *words, "--set", "synthesis=null")
    (tmp_path / "work" / "h5" / "volumes.h5").unlink()
    with pytest.raises(InputError, match="volumes.h5: no such file; run generate_h5_pretraining.py first"):
        run(config, *words)
    assert not (tmp_path / "work" / "synthesis").exists()


def test_a_test_subject_that_is_not_packed_is_named_before_anything_is_trained(packed, tmp_path):
    config, *words = elsewhere(packed, tmp_path)
    lists = packed / "scans" / "splits.json"
    settings = ["--set", "data.splits=splits.json"]
    lists.write_text(json.dumps(SPLIT | {"test": ["sub-005"]}))
    shutil.rmtree(tmp_path / "work" / "h5")
    shutil.copytree(packed / "work3" / "constraint_maps", tmp_path / "work" / "constraint_maps")
    generate_h5_pretraining.main(["--config", str(config), "--work-dir", str(tmp_path / "work"), *settings])
    lists.write_text(json.dumps(SPLIT))
    with pytest.raises(InputError, match="sub-006: is not in .*volumes.h5; run generate_h5_pretraining.py --overwrite"):
        run(config, *words, *settings)
    assert not (tmp_path / "work" / "synthesis").exists()


def test_with_folds_every_subject_is_tested_once_by_a_network_that_never_saw_it(packed, tmp_path):
    shutil.copytree(packed / "work2" / "constraint_maps", tmp_path / "work" / "constraint_maps")
    changes = ["data.splits={folds: 3, validation: 1}", "synthesis.training.epochs=2", "synthesis.subjects_n=[3]"]
    changes += ["synthesis.training.steps_per_epoch=1"]
    words = ["--config", str(packed / "rank2.yaml"), "--work-dir", str(tmp_path / "work"), "--set", *changes]
    generate_h5_pretraining.main(words)
    with steps_uncompiled():
        assert finetune_synthesis.main([*words, "--init", "random"]) == 0
    tested, hashes = [], set()
    for fold in range(3):
        metrics = read(cell_of(tmp_path / "work" / f"fold{fold}", "random", 3))
        rows = {row["subject"] for row in metrics["per_subject"]}
        assert metrics["split"] == f"fold{fold}" and len(metrics["train_subjects"]) == 3
        assert not rows & {*metrics["train_subjects"], *metrics["validation_subjects"]}
        tested += rows
        hashes.add(metrics["config_hash"])
    assert sorted(tested) == SUBJECTS and len(hashes) == 1
