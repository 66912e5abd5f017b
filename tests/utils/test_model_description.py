"""model.json is read as it was written, also from older and later versions."""

import json
from pathlib import Path

import pytest

from utils.model_description import SegmentationModel, SynthesisModel, check_agreement, read_model_description
from utils.runs import write_json

RESULTS = Path(__file__).resolve().parents[2] / "results"
SHARED = {
    "contrasts": ["t1"],
    "files": {"t1": "{subject}/t1.nii.gz", "echoes": {"file": "{subject}/echoes.nii.gz", "volumes": 3}},
    "mask": None,
    "percentiles": [1.0, 99.0],
    "slices": {"image_size": [32, 24], "pixel_size": None, "min_foreground": 0.1},
    "filters": [4, 8],
}
KINDS = {
    SegmentationModel: {"labels": {"kidney": 1, "liver": 2}, "voxel_size_known": False},
    SynthesisModel: {"targets": ["t2"], "crop_size": [16, 16, 8], "overlap": 0.5},
}
# As in made_by.csv of earlier versions: with another hash, their predictions would be refused.
DIGESTS = {"chaos_mr": "ea101181afccd329", "lgg_tcga": "6aee092041eb2d50"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again_to_the_key(kind, tmp_path):
    content = SHARED | KINDS[kind]
    write_json(tmp_path / "model.json", kind(**content).as_json())
    assert json.loads((tmp_path / "model.json").read_text()) == content
    read = read_model_description(tmp_path / "model.json")
    assert type(read) is kind and read.as_json() == content
    assert (
        read.layout == "pattern" and read.files["echoes"].volumes == 3 and read.makes in (["kidney", "liver"], ["t2"])
    )
    assert read.input_size == ((32, 24) if kind is SegmentationModel else (16, 16, 8))
    assert read.as_json(leave_out=["mask"]).keys() == content.keys() - {"mask"}


def test_keys_of_later_versions_are_kept(tmp_path):
    content = SHARED | KINDS[SegmentationModel] | {"later": {"a": [1]}, "slices": SHARED["slices"] | {"shape": "round"}}
    write_json(tmp_path / "model.json", content)
    assert read_model_description(tmp_path / "model.json").as_json() == content


@pytest.mark.parametrize("name", DIGESTS)
def test_committed_models_are_those_that_earlier_versions_noted(name):
    from evaluation.prediction.made_by import hash_of_models

    folder = RESULTS / name / "model"
    model = read_model_description(folder / "model.json")
    assert model.as_json() == json.loads((folder / "model.json").read_text())
    assert hash_of_models({folder: model}) == DIGESTS[name]
    check_agreement({"one": model, "another": model.model_copy(update={"trained_on": [], "files": {}})})
