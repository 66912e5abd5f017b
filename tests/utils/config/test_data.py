"""The section `data`: short forms, names of labels, and settings that a layout does not accept."""

import pytest
import yaml

from utils.checks import InputError
from utils.config.load import load_config

BASE = {"root": "scans", "contrasts": {"t1": "{subject}/t1.nii.gz", "t2": "{subject}/t2.nii.gz"}}
BASE["splits"] = {"train": 1, "val": 1, "test": 1}
MAPS = {"contrasts": ["t1", "t2"]}


def load(tmp_path, *, leave_out=(), **data):
    path = tmp_path / "config.yaml"
    kept = {key: value for key, value in BASE.items() if key not in leave_out}
    path.write_text(yaml.safe_dump({"name": "x", "work_dir": "w", "data": kept | data, "constraint_maps": MAPS}))
    return load_config(path)


def test_short_forms(tmp_path):
    data = load(tmp_path, layout="brats", contrasts=["t1", "t2"], labels=["necrosis", "oedema"]).data
    assert data.contrasts == {"t1": "t1", "t2": "t2"}
    assert data.labels == {"necrosis": ["necrosis"], "oedema": ["oedema"]}
    labels = {"tumour": ["necrosis", 3], "oedema": "oedema", "other": ["7"]}
    data = load(tmp_path, layout="brats", contrasts=["t1", "t2"], labels=labels).data
    assert data.labels == {"tumour": ["necrosis", 3], "oedema": ["oedema"], "other": [7]}


def test_places_are_what_find_subjects_takes(tmp_path):
    data = load(tmp_path, layout="chaos", contrasts={"t1": "t1in", "t2": "t2spir"}, resample_to="t1").data
    wanted = data.wanted()
    assert str(wanted.root) == "scans" and wanted.resample_to == "t1" and wanted.layout == "chaos"
    named = {key for key, field in type(data).model_fields.items() if field.json_schema_extra == {"added": True}}
    assert named - {"label_colours"} <= vars(wanted).keys(), "a later key of data would not reach the reading of files"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"labels": {"liver": [1]}}, "data: label and labels go together"),
        ({"label": "{subject}.nii", "labels": {"liver": "liver"}}, "data: labels: 'liver' is a name; layout pattern"),
        ({"layout": "brats", "label": "x", "labels": {"a": [1]}}, "label: layout brats knows where labels lie; remove"),
        ({"layout": "chaos", "label": "T1DUAL"}, "label: layout chaos knows where labels lie; remove it"),
        ({"layout": "bids", "labels": {"a": [1]}}, "data: label and labels go together"),
        ({"layout": "renal", "labels": {"a": ["x"], "b": ["x"]}}, "labels: value x is named twice; a voxel has one"),
        ({"test_images": True}, "test_images: is for the layouts msd and nnunet, not for pattern"),
        ({"resample_to": "t3"}, "resample_to: 't3' is not one of contrasts (t1, t2)"),
        ({"bias_correction": ["t1", "flair"]}, "bias_correction: 'flair' is not one of contrasts (t1, t2)"),
        ({"layout": "brat"}, "data.layout: Input should be 'pattern', 'brats'"),
        ({"layout": "brats", "labels": {"a": [1.5]}}, "data.labels.a.0: Input should be a valid integer"),
        ({"layout": "brats", "labels": {"a": [None]}}, "data.labels.a.0: Input should be a valid integer"),
        ({"layout": "brats", "labels": {"a": [True]}}, "data: labels: found yes (true or false), expected another"),
        ({"contrasts": []}, "data.contrasts: expected keys with values"),
    ],
)
def test_mistakes(tmp_path, data, line):
    with pytest.raises(InputError) as error:
        load(tmp_path, **data)
    assert any(line in found for found in error.value.lines), error.value.lines


def test_hashes_follow_what_shapes_the_arrays_and_nothing_else(tmp_path):
    plain = load(tmp_path)
    maps = {plain.hash_of_maps()}
    assert load(tmp_path, layout="pattern", resample_to=None, bias_correction=[]).hash_of_maps() in maps
    for data in ({"layout": "renal"}, {"resample_to": "t1"}, {"bias_correction": ["t2"]}):
        changed = load(tmp_path, **data)
        assert changed.reading() == data
        assert changed.hash_of_maps() not in maps
        maps.add(changed.hash_of_maps())
    assert plain.reading() == {}
