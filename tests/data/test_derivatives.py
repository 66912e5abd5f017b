"""Names of predictions, and the files that other programs need to read them."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.derivatives import describe_outputs, label_table_prefix, numbered_otherwise, output_path
from data.label_tables import write_label_tables
from data.layouts.subjects import find_subjects, needed_of
from data.scans.volumes import write_nifti
from tests.layouts import AFFINE, corner, ramp, save
from tests.readers import read_label
from utils.config.data import Wanted
from utils.environment import ROOT, project_version
from utils.label_colours import legend_of
from utils.model_description import ModelDescription

FOLDER = Path("out")


@pytest.mark.parametrize("layout", ["pattern", "nnunet", "msd", "brats", "chaos", "renal"])
def test_plain_names(layout):
    assert output_path(layout, FOLDER, "case_001", "label") == FOLDER / "case_001.nii.gz"
    assert output_path(layout, FOLDER, "case_001", "segments") == FOLDER / "case_001.seg.nrrd"
    assert output_path(layout, FOLDER, "case_001", "probabilities") == FOLDER / "case_001_probabilities.nii.gz"
    assert output_path(layout, FOLDER, "case_001", "t1") == FOLDER / "case_001_t1.nii.gz"


def test_bids_names():
    place = FOLDER / "sub-01" / "ses-02" / "anat"
    assert output_path("bids", FOLDER, "sub-01_ses-02", "label") == place / "sub-01_ses-02_desc-mrccl_dseg.nii.gz"
    segments = output_path("bids", FOLDER, "sub-01", "segments")
    assert segments == FOLDER / "sub-01/anat/sub-01_desc-mrccl_dseg.seg.nrrd"
    probabilities = output_path("bids", FOLDER, "sub-01", "probabilities")
    assert probabilities == FOLDER / "sub-01/anat/sub-01_desc-mrccl_probseg.nii.gz"
    made = output_path("bids", FOLDER, "sub-01", "t1gd", "anat/ce-gd_acq-*_T1w")
    assert made == FOLDER / "sub-01/anat/sub-01_ce-gd_desc-mrccl_T1w.nii.gz"


def test_a_bids_derivative_is_read_again_as_labels(tmp_path):
    labels = {"core": 1, "oedema": 2}
    save(tmp_path / "sub-01/ses-02/anat/sub-01_ses-02_T1w.nii.gz", ramp())
    derivative = tmp_path / "derivatives/mrccl"
    write_nifti(output_path("bids", derivative, "sub-01_ses-02", "label"), corner([2, 1]), AFFINE)
    describe_outputs("bids", derivative, "test", labels)
    write_label_tables(derivative, legend_of(labels), label_table_prefix("bids"))
    about = json.loads((derivative / "dataset_description.json").read_text())
    assert about["DatasetType"] == "derivative" and about["GeneratedBy"][0]["Name"] == "mrccl"
    assert {"Name", "BIDSVersion"} <= about.keys() and about["GeneratedBy"][0]["Version"] == project_version()
    names = {"a": ["oedema", "core"]}
    places = Wanted(tmp_path, {"t1": "T1w"}, "derivatives/mrccl/desc-mrccl_dseg", layout="bids", labels=names)
    [files] = find_subjects(places).values()
    np.testing.assert_array_equal(read_label(files, {"a": ["core"], "b": ["oedema"]}), corner([2, 1]))


def test_all_files_state_the_same_version():
    version = project_version()
    assert re.search(rf'(?m)^version = "{re.escape(version)}"$', (ROOT / "pyproject.toml").read_text())
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    released = re.findall(r"(?m)^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text())
    assert released[0] == version


def test_a_derivative_states_the_version_of_the_suite_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.environment.ROOT", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.8.9"\n')
    describe_outputs("bids", tmp_path, "test")
    about = json.loads((tmp_path / "dataset_description.json").read_text())
    assert about["GeneratedBy"] == [{"Name": "mrccl", "Version": "7.8.9"}]


def test_a_dataset_json_for_the_evaluator_of_nnunet(tmp_path):
    describe_outputs("nnunet", tmp_path, "prostate", {"PZ": 1, "TZ": 2}, ["T2", "ADC"])
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "PZ": 1, "TZ": 2} and content["file_ending"] == ".nii.gz"
    assert content["channel_names"] == {"0": "T2", "1": "ADC"}
    describe_outputs("pattern", tmp_path / "none", "x", {"a": 1})
    assert not (tmp_path / "none").exists()


def test_classes_numbered_differently_on_disk():
    names = {"PZ": (1,), "TZ": (2,), "gland": (1, 2)}
    assert numbered_otherwise({"a": ["PZ"], "b": ["TZ"]}, names) == {}
    assert numbered_otherwise({"b": ["TZ"], "a": ["PZ"]}, names) == {"b": [2], "a": [1]}
    assert numbered_otherwise({"a": ["gland"]}, names) == {"a": [1, 2]}


def test_what_a_model_needs_of_new_scans(tmp_path):
    files = {"t1": "t1in", "t2": "t2spir", "echoes": {"file": "x", "volumes": 2}}
    keys = {"files": files, "layout": "chaos", "resample_to": "t1", "mask": None, "percentiles": (1, 99)}
    keys |= {"slices": {"image_size": (8, 8), "pixel_size": None}, "filters": [2, 4]}
    model = ModelDescription(contrasts=["echoes_1", "t2"], **keys)
    assert list(needed_of(model)) == ["echoes", "t2", "t1"]
    assert needed_of(model.model_copy(update={"contrasts": ["t2"]})) == {"t2": "t2spir"}
    wanted = model.wanted(tmp_path, files)
    assert (wanted.layout, wanted.resample_to, wanted.root) == ("chaos", "t1", tmp_path)
