"""python -m tools.export_dataset: nnU-Net reads the data on which step 4 trains and tests."""

import csv
import json
import shlex
import shutil

import nibabel
import numpy as np
import pytest

from data.nnunet import case_name, dataset_description, subject_of_case
from data.splits import annotated_subsets, find_and_split
from tests.bad_input.harness import assert_refused, run
from tests.cohort import AFFINE, FIRST_FOUR, save, volumes, write_cohort, write_config
from tests.tools.nnunet_rules import cases_of, read_case, read_dataset
from utils.config.load import load_config

NAME = "Dataset501_tiny_t1"
PACK = FIRST_FOUR[:2]
SIX = [f"sub {number}" for number in range(1, 7)]  # spaces are not safe in file names
FOLDS = {"folds": 3, "validation": 1}


def export(config, output, *words):
    return run("tools.export_dataset", "--config", config, "--format", "nnunet", "--output", output, *words)


def read_cells(folder):
    with open(folder / "cells.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_dataset_holds_scans_labels_and_folds_of_the_study(finished, tmp_path):
    outcome = export(finished / "tiny.yaml", tmp_path / "raw")
    assert outcome.code == 0, outcome.said
    folder = tmp_path / "raw" / NAME
    pairs, folds = read_dataset(folder)
    assert folds == [{"train": ["sub-1"], "val": ["sub-2"]}]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "kidney": 1, "liver": 2}
    assert description["channel_names"] == {"0": "t1"}
    pairs["sub-3"] = read_case(folder, "Ts", "sub-3", description)
    for subject, (images, classes) in pairs.items():
        scans = finished / "data" / subject
        assert np.array_equal(images[0], nibabel.load(scans / "t1.nii.gz").get_fdata())
        assert np.array_equal(classes, nibabel.load(scans / "label.nii.gz").get_fdata())
    assert (folder / "dseg.tsv").read_text().splitlines()[2] == "1\tkidney\t#F0E442"
    for part, intent in (("imagesTs/sub-3_0000", "none"), ("labelsTs/sub-3", "label")):
        assert nibabel.load(folder / f"{part}.nii.gz").header.get_intent()[0] == intent
    written = nibabel.load(folder / "labelsTs/sub-3.nii.gz")
    assert np.array_equal(written.affine, AFFINE) and written.header.get_zooms() == (2, 2, 5)
    assert cases_of(folder / "imagesTs") == ["sub-3"]


def test_what_is_to_be_typed_next_is_printed(finished, tmp_path):
    logged = export(finished / "tiny.yaml", tmp_path / "my raw").logged
    assert any(f"'{tmp_path}/my raw' nnUNetv2_plan_and_preprocess -d 501" in line for line in logged)
    assert any("tools.score_predictions --config" in line and "--subjects-n 1 --repeat 0" in line for line in logged)


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    """Return six packed subjects in three folds, with label values that the config renumbers."""
    folder = tmp_path_factory.mktemp("six")
    labels = {"liver": [7], "kidney": [3, 4]}
    for seed, subject in enumerate(SIX):
        images = volumes(seed)
        organ = images["label"].astype(bool)
        images["label"] = np.where(organ, 3 + (np.arange(16)[:, None, None] % 2), 0).astype(np.uint8)
        images["label"][:2, :2] = 7
        for name, array in images.items():
            save(folder / "data" / subject / f"{name}.nii.gz", array)
    data = {
        "root": str(folder / "data"),
        "contrasts": {"t1": "{subject}/t1.nii.gz", "t2": "{subject}/t2.nii.gz"},
        "label": "{subject}/label.nii.gz",
        "labels": labels,
        "splits": FOLDS,
    }
    finetuning = {
        "contrasts": {"t1": ["t1"], "both": ["t2", "t1"]},
        "inits": ["random"],
        "subjects_n": [1, 3],
        "repeats": 2,
        "training": {"epochs": 1, "batch_size": 2, "learning_rate": 0.001},
    }
    config = write_config(folder, data=data, finetuning=finetuning)
    for step in PACK:
        assert run(step, "--config", config).code == 0
    assert export(config, folder / "raw", "--jobs", "2").code == 0
    return folder


def test_each_fold_is_a_cell_of_an_outer_fold(six):
    config = load_config(six / "tiny.yaml")
    _, splits = find_and_split(config.data.wanted(), FOLDS, config.seed)
    expected = []
    for split in splits:
        drawn = annotated_subsets(split.train, [1, 3], 2, config.seed)
        expected += [(split, n, repeat, drawn[n, repeat]) for n in (1, 3) for repeat in (0, 1)]
    for number, contrasts in ((501, "t1"), (502, "both")):
        folder = six / f"raw/Dataset{number}_tiny_{contrasts}"
        pairs, folds = read_dataset(folder)
        assert set(pairs) == {case_name(name) for part in expected for name in (*part[3], *part[0].val)}
        assert len(folds) == len(expected) == 12
        for fold, row, (split, n, repeat, train) in zip(folds, read_cells(folder), expected, strict=True):
            assert fold["train"] == sorted(map(case_name, train)) == sorted(row["train"].split())
            assert fold["val"] == [case_name(name) for name in split.val]
            assert (row["split"], row["subjects_n"], row["repeat"]) == (split.name, str(n), str(repeat))
            tested = cases_of(folder / row["images"])
            assert tested == [case_name(name) for name in split.test]
            assert not set(tested) & {*fold["train"], *fold["val"]}


def test_labels_are_numbered_as_the_config_lists_them_and_channels_as_its_input_set(six):
    pairs, _ = read_dataset(six / "raw/Dataset502_tiny_both")
    for case, (images, classes) in pairs.items():
        scans = six / "data" / subject_of_case(case)
        on_disk = nibabel.load(scans / "label.nii.gz").get_fdata()
        assert np.array_equal(classes == 1, on_disk == 7) and np.array_equal(classes == 2, np.isin(on_disk, (3, 4)))
        for channel, name in enumerate(("t2", "t1")):
            assert np.array_equal(images[channel], nibabel.load(scans / f"{name}.nii.gz").get_fdata())


@pytest.mark.parametrize(
    ("subject", "case"),
    [
        ("sub-1_ses-2", "sub-1_ses-2"),
        ("a b", "a=20b"),
        ("a=20b", "a=3D20b"),
        (".x/y", "=2Ex=2Fy"),
        ("Müller", "M=C3=BCller"),
        ("p_seg", "p=5Fseg"),
        ("p_0001", "p_0001"),
        ("A$1$", "A=241=24"),
    ],
)
def test_names_of_cases_are_safe_and_lead_back(subject, case):
    assert case_name(subject) == case and subject_of_case(case) == subject


def test_no_channel_chooses_another_normalisation_by_its_name():
    described = dataset_description(["CT", "t1", "zscore"], ["a"], 1, name="n", description="d")
    assert list(described["channel_names"].values()) == ["CT (MR)", "t1", "zscore (MR)"]


def test_contrasts_on_other_grids_come_on_that_of_the_steps(tmp_path):
    config = write_cohort(tmp_path, constraint_maps=None, pretraining=None)
    finer = AFFINE @ np.diag([0.5, 0.5, 1, 1])
    for number in (1, 2, 3):
        array = np.repeat(np.repeat(volumes(number)["t2"], 2, 0), 2, 1)
        save(tmp_path / f"data/sub-{number}/t2.nii.gz", array, finer)
    changed = ["--set", "data.resample_to=t2", "finetuning.contrasts={t1: [t1]}", "finetuning.inits=[random]"]
    assert run("generate_h5_pretraining", "--config", config, *changed).code == 0
    outcome = export(config, tmp_path / "raw", *changed)
    assert outcome.code == 0, outcome.said
    pairs, _ = read_dataset(tmp_path / "raw" / NAME)
    assert {images.shape for images, _ in pairs.values()} == {(1, 32, 28, 4)}
    assert np.array_equal(nibabel.load(tmp_path / "raw" / NAME / "labelsTs/sub-3.nii.gz").affine, finer)


def test_finished_datasets_are_kept_until_overwrite(finished, tmp_path):
    config, raw = finished / "tiny.yaml", tmp_path / "raw"
    assert export(config, raw).code == 0
    (raw / NAME / "mine.txt").touch()
    words = ["--config", config, "--format", "nnunet", "--output", raw]
    line = f"{raw / NAME}: already exists; give --overwrite, or another --output"
    assert_refused(tmp_path, "tools.export_dataset", words, [line])
    assert export(config, raw, "--overwrite").code == 0 and not (raw / NAME / "mine.txt").exists()
    (raw / "Dataset502_other").mkdir()
    line = "--first-number 502: already belongs to 'Dataset502_other'; give another one"
    assert_refused(tmp_path, "tools.export_dataset", [*words, "--first-number", "502"], [line])


MISTAKES = [
    ("--first-number 1000", "--first-number 1000: expected 1 to 999, because there is one dataset per input set"),
    (
        "--set 'data.labels={{ignore: [1], liver: [2]}}'",
        "data.labels: 'ignore' means something else to nnU-Net; give the class another name",
    ),
    ("--set finetuning=null", "{config}: this step needs the section 'finetuning:'"),
    ("--output {config}", "--output: '{config}' is a file, not a folder; give another folder"),
    ("--set seed=4", "{work}/h5/annotated.h5: made with another seed<any>"),
    ("--work-dir {new}", "{new}/h5/annotated.h5: no such file; run generate_h5_pretraining.py first"),
    (
        "--format medical",
        "python -m tools.export_dataset: error: argument --format: invalid choice: 'medical' (choose from 'nnunet')",
    ),
]


@pytest.mark.parametrize(("words", "line"), MISTAKES, ids=[words[:30] for words, _ in MISTAKES])
def test_mistakes_are_named(words, line, finished, tmp_path):
    names = {"config": finished / "tiny.yaml", "new": tmp_path / "new", "work": finished / "work"}
    base = ["--config", names["config"], "--format", "nnunet", "--output", tmp_path / "raw"]
    more = [word.format(**names) for word in shlex.split(words)]
    assert_refused(tmp_path, "tools.export_dataset", [*base, *more], [line], **names)


def test_a_spoiled_scan_leaves_no_dataset_behind(finished, tmp_path):
    for part in ("data", "work"):
        shutil.copytree(finished / part, tmp_path / part)
    config = write_config(tmp_path)
    scan = tmp_path / "data/sub-3/t1.nii.gz"
    scan.write_bytes(scan.read_bytes()[:-200])
    label = nibabel.load(tmp_path / "data/sub-1/label.nii.gz")
    save(tmp_path / "data/sub-1/label.nii.gz", np.roll(np.asarray(label.dataobj), 1, 0))
    outcome = export(config, tmp_path / "raw")
    assert outcome.code == 2 and len(outcome.said) == 2, outcome.said
    assert "changed since step 2 packed it" in outcome.said[0] and "sub-3" in outcome.said[1]
    assert list((tmp_path / "raw").iterdir()) == []
