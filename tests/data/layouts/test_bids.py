"""BIDS: sessions, derivatives and filters; `test_layout_bids_pybids.py` compares with pybids."""

from pathlib import Path

import numpy as np
import pytest

from data.layouts.bids import parse_filter, parse_name
from data.layouts.subjects import find_subjects
from tests.layouts import corner, ramp, save, save_json
from tests.readers import problems_of_subject, read_contrasts, read_label
from utils.checks import InputError
from utils.config.data import Wanted

CONTRASTS = {"t1": "T1w", "t1gd": "anat/ce-gadolinium_T1w", "flair": "acq-*_FLAIR"}
LABEL, NAMES = "derivatives/manual/space-orig_desc-tumour_dseg", {"core": ["core"], "whole": [3]}


def write_bids(root):
    save_json(root / "dataset_description.json", {"Name": "test", "BIDSVersion": "1.10.0"})
    for seed, (subject, session) in enumerate([("01", "pre"), ("01", "post"), ("02", "pre")]):
        name, place = f"sub-{subject}_ses-{session}", f"sub-{subject}/ses-{session}/anat"
        save(root / place / f"{name}_T1w.nii.gz", ramp(seed))
        save(root / place / f"{name}_ce-gadolinium_T1w.nii.gz", ramp(seed + 10))
        save(root / place / f"{name}_acq-{'a' if seed else 'b'}_FLAIR.nii.gz", ramp(seed + 20))
        save(root / place / f"{name}_ce-gadolinium_rec-norm_T1w.nii.gz", ramp(seed + 30))
        save(root / "sourcedata" / place / f"{name}_T1w.nii.gz", ramp(seed))
        derivative = root / "derivatives/manual"
        if session == "pre":
            save(derivative / place / f"{name}_space-orig_desc-tumour_dseg.nii.gz", corner([2, 3, 1]))
            save(derivative / place / f"{name}_space-orig_desc-brain_mask.nii.gz", (ramp() > 300).astype("u1"))
    save_json(derivative / "dataset_description.json", {"Name": "manual", "BIDSVersion": "1.10.0"})
    (derivative / "desc-tumour_dseg.tsv").write_text("index\tname\n0\tbackground\n1\tcore\n2\toedema\n3\tother\n")


def find(root, left_out=None, **keys):
    places = Wanted(root, CONTRASTS, LABEL, layout="bids", labels=NAMES, ignored=["oedema"], **keys)
    return find_subjects(places, left_out)


def test_sessions_are_subjects_of_one_person(tmp_path):
    write_bids(tmp_path)
    found = find(tmp_path)
    assert list(found) == ["sub-01_ses-post", "sub-01_ses-pre", "sub-02_ses-pre"]
    assert [files.person for files in found.values()] == ["sub-01", "sub-01", "sub-02"]
    assert [files.label is None for files in found.values()] == [True, False, False]


def test_filters_choose_what_they_say_and_nothing_more(tmp_path):
    write_bids(tmp_path)
    files = find(tmp_path)["sub-02_ses-pre"]
    assert problems_of_subject(files, CONTRASTS, labels=NAMES, ignored=["oedema"]) == []
    volume, _ = read_contrasts(files, list(CONTRASTS), CONTRASTS)
    np.testing.assert_array_equal(volume, np.stack([ramp(2), ramp(12), ramp(22)], -1))
    np.testing.assert_array_equal(read_label(files, NAMES, ["oedema"]), corner([0, 2, 1]))


def test_a_mask_is_a_filter_too(tmp_path):
    write_bids(tmp_path)
    with pytest.raises(InputError, match="sub-01_ses-post: mask 'mask' is missing"):
        find(tmp_path, mask="derivatives/manual/space-orig_desc-brain_mask")
    left_out = []
    found = find(tmp_path, mask="derivatives/manual/space-*_desc-brain_mask", left_out=left_out)
    assert [files.mask.name for files in found.values()] == [
        f"{name}_space-orig_desc-brain_mask.nii.gz" for name in ("sub-01_ses-pre", "sub-02_ses-pre")
    ]
    assert len(left_out) == 1


def test_a_filter_that_is_not_clear_or_not_a_filter(tmp_path):
    write_bids(tmp_path)
    with pytest.raises(InputError) as error:
        find_subjects(Wanted(tmp_path, {"t1": "ce-*_*_T1w"}, layout="bids"))
    assert len(error.value.lines) == 3
    expected = "sub-02_ses-pre: 2 files match '{subject}_ce-*_*_T1w' (sub-02_ses-pre_ce-gadolinium_T1w.nii.gz, "
    assert error.value.lines[2].startswith(expected)
    assert error.value.lines[2].endswith("name more entities in the filter")
    with pytest.raises(InputError, match="_T1w.nii.gz' is not a filter of layout bids; write for instance T1w,"):
        find_subjects(Wanted(tmp_path, {"t1": "{subject}_T1w.nii.gz"}, layout="bids"))
    with pytest.raises(InputError, match="every subject and session is read; remove 'ses-pre' from"):
        find_subjects(Wanted(tmp_path, {"t1": "ses-pre_T1w"}, layout="bids"))
    with pytest.raises(InputError, match="no folder '.*derivatives/absent'; correct data.root or the filter"):
        find_subjects(Wanted(tmp_path, {"t1": "derivatives/absent/T1w"}, layout="bids"))
    with pytest.raises(
        InputError, match="sub-01_ses-pre .and of 1 more subject. has no name 'cores'; did you mean 'core'"
    ):
        find_subjects(Wanted(tmp_path, CONTRASTS, LABEL, layout="bids", labels={"core": ["cores"]}))
    (tmp_path / "derivatives/manual/desc-tumour_dseg.tsv").write_text("value\tname\n1\tcore\n")
    with pytest.raises(InputError, match="dseg.tsv: expected the columns index and name"):
        find(tmp_path)


def test_names_and_filters():
    assert parse_name(Path("sub-01_ses-02_run-1_T2w.nii.gz")) == ({"sub": "01", "ses": "02", "run": "1"}, "T2w")
    assert parse_name(Path("template_T1w.nii.gz")) is None
    assert parse_filter("derivatives/fmriprep/anat/run-*_desc-preproc_T1w") == (
        "derivatives/fmriprep",
        "anat",
        ["run-*", "desc-preproc"],
        "T1w",
    )


def test_folders_above_the_data_set_say_nothing_of_its_scans(tmp_path):
    write_bids(tmp_path / "sub-9_run-7" / "ses-all")
    found = find(tmp_path / "sub-9_run-7" / "ses-all")
    assert list(found) == ["sub-01_ses-post", "sub-01_ses-pre", "sub-02_ses-pre"]


def test_an_entity_that_bids_does_not_know_is_an_entity(tmp_path):
    save(tmp_path / "sub-1/anat/sub-1_T1w.nii.gz", ramp())
    save(tmp_path / "sub-1/anat/sub-1_foo-1_T1w.nii.gz", ramp())
    files = find_subjects(Wanted(tmp_path, {"plain": "T1w", "foo": "foo-*_T1w"}, layout="bids"))["sub-1"]
    assert [path.name for path in files.contrasts.values()] == ["sub-1_T1w.nii.gz", "sub-1_foo-1_T1w.nii.gz"]


def test_the_nearest_table_names_values_and_folders_are_searched_once(tmp_path, monkeypatch):
    write_bids(tmp_path)
    derivative = tmp_path / "derivatives/manual"
    nearest = derivative / "sub-02/ses-pre/anat/desc-tumour_dseg.tsv"
    nearest.write_text("index\tname\n2\tcore\n1\toedema\n")
    searched, glob = [], Path.glob
    monkeypatch.setattr(
        Path, "glob", lambda folder, pattern: searched.append((folder, pattern)) or glob(folder, pattern)
    )
    found = find(tmp_path)
    assert found["sub-01_ses-pre"].label_names["core"] == (1,) and found["sub-02_ses-pre"].label_names["core"] == (2,)
    assert len(searched) == len(set(searched)) and (derivative, "dseg.tsv") in searched
