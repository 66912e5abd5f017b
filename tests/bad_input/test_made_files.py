"""Files from earlier steps or the user that were damaged later: maps, their table, splits, scores, models."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas
import pytest

from evaluation.pictures.overlays import read_pictures
from evaluation.scores.scores import Scores
from tests.bad_input.harness import assert_refused, run
from tests.bad_input.test_weights import MODEL
from tests.cohort import save, write_cohort, write_config
from utils.checks import InputError
from utils.config.data import Wanted
from utils.config.load import load_config

MAP_AGAIN = "make it again: generate_constraint_maps.py --overwrite"
CELL_AGAIN = "delete the cell's folder and run step 4 again"


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mapped")
    assert run("generate_constraint_maps", "--config", write_cohort(folder)).code == 0
    return folder


@pytest.fixture
def cohort(mapped, tmp_path):
    shutil.copytree(mapped, tmp_path / "copy")
    write_config(tmp_path / "copy")
    return tmp_path / "copy"


def classes(path):
    return np.asarray(nibabel.load(path).dataobj)


MAPS = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-30]), "'{path}' is truncated"),
    "floats": (
        lambda p: save(p, classes(p).astype(np.float32)),
        "'{path}' holds float32 values, expected integers",
    ),
    "fewer slices": (
        lambda p: save(p, classes(p)[..., :3]),
        "'{path}' is (16, 14, 3) but the scan is (16, 14, 4); a constraint map lies on the grid of its scans",
    ),
    "4D": (lambda p: save(p, np.stack([classes(p)] * 2, -1)), "'{path}' is (16, 14, 4, 2), expected 3 axes"),
    "too many classes": (lambda p: save(p, classes(p) * 9), "'{path}' has classes from 0 to 27, expected 1 to 3"),
    "negative": (
        lambda p: save(p, classes(p).astype(np.int16) - 1),
        "'{path}' has classes from -1 to 2, expected 1 to 3",
    ),
    "empty": (lambda p: save(p, classes(p) * 0), "'{path}' has classes from 0 to 0, expected 1 to 3"),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_bad_constraint_map_is_refused(name, cohort):
    path = cohort / "work" / "constraint_maps" / "sub-2.nii.gz"
    spoil, text = MAPS[name]
    spoil(path)
    line = f"sub-2: {text}; {MAP_AGAIN}"
    assert_refused(cohort, "generate_h5_pretraining", ["--config", cohort / "tiny.yaml"], [line], path=path)


TABLES = {
    "cut off": (lambda content: content[:-50], "rows differ in length"),
    "not text": (lambda content: b"\x00\xff" * 40, "byte 0xff at position 2 is not UTF-8; save it as UTF-8"),
    "another table": (lambda content: b"a,b\n1,2\n", "'config_hash'"),
    "an endless field": (
        lambda content: b"subject,config_hash,seed\n" + b"x" * 200_000 + b",a,b\n",
        "field larger than field limit (131072)",
    ),
}


@pytest.mark.parametrize("step", ["generate_constraint_maps", "generate_h5_pretraining"])
@pytest.mark.parametrize("name", TABLES)
def test_a_bad_table_of_maps_is_refused(name, step, cohort):
    path = cohort / "work" / "constraint_maps" / "summary.csv"
    change, reason = TABLES[name]
    path.write_bytes(change(path.read_bytes()))
    line = f"{{path}}: not a summary of constraint maps ({reason}); delete it, and the maps are made again"
    assert_refused(cohort, step, ["--config", cohort / "tiny.yaml"], [line], path=path)


REST = '"val": ["sub-2"], "test": ["sub-3"]'
FORM = '{path}: expected {{"train": [...], "val": [...], "test": [...]}}'
SPLITS = {
    "absent": (None, "{path}: no such file"),
    "cut off": ('{"train": [', "{path}: not readable as JSON (<any>); correct it"),
    "empty": ("", "{path}: not readable as JSON (<any>); correct it"),
    "nested without end": ("[" * 100_000, "{path}: not readable as JSON (maximum recursion depth<any>); correct it"),
    "5000 digits": (f'{{"train": [{"9" * 5000}]}}', "{path}: not readable as JSON (<any>); correct it"),
    "a list": ("[]", FORM),
    "names instead of lists": ('{"train": "sub-1"}', FORM),
    "a set twice": (
        f'{{"train": ["sub-1"], "train": [], {REST}}}',
        "{path}: not readable as JSON (key 'train' appears twice); correct it",
    ),
    "a set missing": (
        '{"train": ["sub-1"], "val": ["sub-2"]}',
        "{path}: 'test' is missing or empty; list its subjects",
    ),
    "a set too many": (
        f'{{"train": ["sub-1"], "tset": [], {REST}}}',
        "{path}: unknown set 'tset'; a split has train, val and test",
    ),
    "numbers": (f'{{"train": [1], {REST}}}', "{path}: train lists 1, which is not text; put subjects in quotes"),
    "unknown subject": (
        f'{{"train": ["sub-9"], {REST}}}',
        "sub-9: is in train of {path}, but there are no such scans; remove or add it",
    ),
    "subject in two sets": (
        f'{{"train": ["sub-1", "sub-3"], {REST}}}',
        "sub-3: is in train and test of {path}; keep it in one set",
    ),
    "subject twice in a set": (
        f'{{"train": ["sub-1", "sub-1"], {REST}}}',
        "sub-1: is listed 2 times in train of {path}; list it once",
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_bad_splits_are_refused(name, tmp_path):
    config, path = write_cohort(tmp_path), tmp_path / "data" / "splits.json"
    text, line = SPLITS[name]
    if text is not None:
        path.write_text(text)
    words = ["--config", config, "--set", "data.splits=splits.json"]
    assert_refused(tmp_path, "generate_constraint_maps", words, [line], path=path)


def test_splits_with_a_byte_order_mark_are_read(tmp_path):
    config, path = write_cohort(tmp_path), tmp_path / "data" / "splits.json"
    path.write_text(f'\ufeff{{"train": ["sub-1"], {REST}}}')
    words = ["--config", config, "--set", "data.splits=splits.json", "--subjects", "sub-1"]
    assert run("generate_constraint_maps", *words).code == 0


ROW = {"subject": "sub-3", "label": "kidney", "dice": 0.5, "hd95_mm": 1.0, "surface_dice": 0.5}
ROW |= {"volume_ml": 1.0, "volume_ml_reference": 2.0}
SCORES = {"seed": 3, "contrasts": "t1", "init": "random", "n_annotated": 1, "repeat": 0, "train_subjects": ["sub-1"]}
SCORES |= {"per_subject": [ROW]}
BAD_SCORES = {
    "cut off": ('{"seed": 3,', "not readable as JSON (<any>); delete it and run the step again"),
    "nested without end": ("[" * 100_000, "not readable as JSON (<any>); delete it and run the step again"),
    "a list": ("[]", f"holds list, expected keys with values; {CELL_AGAIN}"),
    "no keys": ("{}", f"key 'contrasts' is missing; {CELL_AGAIN}"),
    "no scores": (SCORES | {"per_subject": []}, f"per_subject is empty; {CELL_AGAIN}"),
    "a number for the scores": (SCORES | {"per_subject": 3}, f"per_subject holds int; {CELL_AGAIN}"),
    "a number for a row": (SCORES | {"per_subject": [3]}, f"holds int, expected keys with values; {CELL_AGAIN}"),
    "text for a score": (SCORES | {"per_subject": [ROW | {"dice": "0.5"}]}, f"dice holds str; {CELL_AGAIN}"),
    "a score missing": (SCORES | {"per_subject": [{"label": "kidney"}]}, f"key 'dice' is missing; {CELL_AGAIN}"),
    "text for N": (SCORES | {"n_annotated": "one"}, f"n_annotated holds str; {CELL_AGAIN}"),
}


@pytest.mark.parametrize("name", BAD_SCORES)
def test_bad_scores_are_refused(name, tmp_path):
    config = write_cohort(tmp_path)
    path = tmp_path / "work" / "finetuning" / "t1" / "random" / "n01" / "r0" / "metrics.json"
    path.parent.mkdir(parents=True)
    content, text = BAD_SCORES[name]
    if isinstance(content, dict):
        content = json.dumps(content | {"config_hash": load_config(config).hash_of_cell("t1", "random")})
    path.write_text(content)
    assert_refused(tmp_path, "reproduce_tables", ["--config", config], [f"{{path}}: {text}"], path=path)


MODELS = {
    "cut off": ("{", "not readable as JSON (<any>); delete it and run the step again"),
    "a list": ("[]", "is not a description of a model; run the cell again"),
    "no keys": (
        "{}",
        "lacks contrasts, files, filters, labels, mask, percentiles, slices, voxel_size_known; run the cell again",
    ),
    "no contrasts": (
        {"contrasts": []},
        "contrasts: List should have at least 1 item after validation, not 0 (found []); run the cell again",
    ),
    "number for contrasts": (
        {"contrasts": 3},
        "contrasts: Input should be a valid list (found 3); run the cell again",
    ),
    "number for a path": (
        {"files": {"t1": 3}},
        "files.t1: expected text (found 3); put it in quotes; run the cell again",
    ),
    "one filter": (
        {"filters": [2]},
        "filters: List should have at least 2 items after validation, not 1 (found [2]); run the cell again",
    ),
    "no size": ({"slices": {"pixel_size": None}}, "slices.image_size: Field required; run the cell again"),
    "infinite pixels": (
        {"slices": {"image_size": [16, 16], "pixel_size": float("inf")}},
        "slices.pixel_size: Input should be a finite number (found inf); run the cell again",
    ),
    "percentiles that descend": (
        {"percentiles": [99, 1]},
        "percentiles: [99.0, 1.0] must ascend within 0 to 100 (found [99, 1]); run the cell again",
    ),
    "labels with a gap": (
        {"labels": {"kidney": 1, "liver": 3}},
        "labels: {{'kidney': 1, 'liver': 3}} must number the classes from 1 to 2; run the cell again",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_description_of_a_model_is_refused(name, tmp_path):
    write_cohort(tmp_path)
    path = tmp_path / "model" / "model.json"
    path.parent.mkdir()
    content, text = MODELS[name]
    path.write_text(content if isinstance(content, str) else json.dumps(MODEL | content))
    words = ["--model", path.parent, "--input", tmp_path / "data", "--output", tmp_path / "predictions"]
    assert_refused(tmp_path, "predict", words, [f"{{path}}: {text}"], path=path)


def test_a_model_that_asks_for_an_unknown_contrast_is_refused(tmp_path):
    write_cohort(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text(json.dumps(MODEL | {"contrasts": ["t3"]}))
    words = ["--model", tmp_path / "model", "--input", tmp_path / "data", "--output", tmp_path / "predictions"]
    line = "--model: contrast 't3' is not in 'files' of model.json; known: t1, t2; run the cell again"
    assert_refused(tmp_path, "predict", words, [line])


def test_scores_that_are_all_without_a_value_have_no_picture_and_say_so():
    """This happens if the only test subject has no label and none is predicted; the report omits the picture."""
    row = {"contrasts": "t1", "init": "random", "n_annotated": 2, "subject": "sub-3", "label": "kidney", "dice": np.nan}
    with pytest.raises(InputError, match="no test subject has a Dice, because no label is in its reference"):
        read_pictures(Scores(pandas.DataFrame([row])), {}, "t1", Wanted(Path(), {}))
