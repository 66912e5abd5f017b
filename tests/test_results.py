"""The committed models reproduce the committed numbers, and the committed scores the tables of their pages."""

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest
import yaml

import predict
from evaluation.report.tables import difference_table, score_table
from evaluation.scores.measures import DICE, SEGMENTATION
from evaluation.scores.scores_csv import read_scores_csv
from models.portable import load_network
from utils.config.load import load_config

ROOT = Path(__file__).resolve().parents[1]
RESULTS = sorted(path.parent for path in (ROOT / "results").glob("*/model"))
STUDIES = sorted(path.parent for path in (ROOT / "results").glob("*/config.yaml"))
MOST_BYTES = 8_000_000


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_committed_model_is_complete_and_small(folder):
    size = sum(path.stat().st_size for path in (folder / "model").iterdir())
    assert size < 6e6
    model = predict.read_model(folder / "model")
    network = load_network(folder / "model", model)
    height, width = model.slices.image_size
    probabilities = network.predict(np.zeros((1, height, width, len(model.contrasts))), verbose=0)
    assert probabilities.shape == (1, height, width, len(model.labels) + 1)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("folder", RESULTS, ids=lambda folder: folder.name)
def test_a_committed_model_repeats_its_score_on_a_real_scan(folder, tmp_path):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    scans = ROOT / config["data"]["root"]
    if not scans.is_dir():
        pytest.skip(f"the real scans of {folder.name} are not at {config['data']['root']}")
    scores = pandas.read_csv(folder / "scores.csv")
    model = json.loads((folder / "model" / "model.json").read_text())
    cell = scores[scores["folder"] == (folder / "model" / "cell.txt").read_text().strip()]
    subject = cell.groupby("subject").dice.mean().idxmax()
    contrast = model["contrasts"][0]
    scan = scans / config["data"]["contrasts"][contrast].format(subject=subject)
    predict.main([*map(str, ("--model", folder / "model", "--input", scan, "--output", tmp_path / "label.nii.gz"))])
    predicted = np.asarray(nibabel.load(tmp_path / "label.nii.gz").dataobj)
    stored = np.asarray(nibabel.load(scans / config["data"]["label"].format(subject=subject)).dataobj)
    for name, index in model["labels"].items():
        true = np.isin(stored, config["data"]["labels"][name])
        dice = 2 * np.sum((predicted == index) & true) / (np.sum(predicted == index) + np.sum(true))
        expected = cell[(cell.subject == subject) & (cell.label == name)].dice.item()
        # Convolutions round differently on other machines, so a voxel on an edge may change.
        assert dice == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_the_scores_of_a_study_give_the_numbers_of_its_page(folder):
    config, scores = load_config(folder / "config.yaml"), read_scores_csv(folder / "scores.csv")
    assert getattr(config, scores.task.folder) is not None and scores.measures
    if scores.task is SEGMENTATION:
        shown = {text for row in rows_of_page(folder) for text in re.findall(r"0\.\d{3} ± 0\.\d{3}", row)}
        text = score_table(scores, DICE).text.to_string() + difference_table(scores).text.to_string()
        assert len(shown) >= 6 and not [one for one in shown if one not in text]


def rows_of_page(folder):
    return [line for line in (folder / "README.md").read_text().splitlines() if line.startswith("|")]


def test_results_hold_what_is_shown_or_cannot_be_made_again():
    files = [path for path in (ROOT / "results").rglob("*") if path.is_file() and "report" not in path.parts]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    pages = "".join(page.read_text() for page in (ROOT / "results").glob("*/README.md"))
    assert not [path for path in files if path.suffix == ".png" and f"({path.name})" not in pages]
    made = {f"{name}.{suffix}" for name in ("dice", "dice_differences", "synthesis") for suffix in ("csv", "md", "tex")}
    assert not [path for path in files if path.name in made or path.suffix == ".tex"]
