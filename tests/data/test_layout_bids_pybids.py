"""Files and entities of layout bids against pybids, on a tree with everything that docs/data.md promises."""

import itertools
import json
from pathlib import Path

import pytest

from data.layouts.bids import find_bids, parse_name
from data.layouts.files import walk_scans
from utils.config.data import Wanted

PYBIDS_NAMES = {
    "sub": "subject",
    "ses": "session",
    "task": "task",
    "acq": "acquisition",
    "ce": "ceagent",
    "rec": "reconstruction",
    "run": "run",
    "echo": "echo",
    "part": "part",
    "space": "space",
    "res": "res",
    "label": "label",
    "desc": "desc",
}
SESSIONS = {"01": ["pre", "post"], "02": ["pre"], "03": [None], "A4": ["1", "02"]}
RAW = ["", "ce-gd_", "acq-a_", "acq-b_", "acq-a_rec-norm_", "run-1_", "run-02_", "ce-gd_run-1_", "echo-1_part-mag_"]
MADE = ["space-orig_desc-tumour_dseg", "space-t2_desc-tumour_dseg", "desc-tumour_dseg", "space-orig_desc-brain_mask"]
MADE += ["space-orig_res-2_label-core_desc-x_probseg", "desc-preproc_T1w"]
ANY = "any value"
# Filter -> (folder, whether further entities are allowed, query for pybids).
FILTERS = {
    "T1w": ("", False, {"suffix": "T1w"}),
    "ce-gd_T1w": ("", False, {"suffix": "T1w", "ceagent": "gd"}),
    "anat/ce-gd_T2w": ("", False, {"suffix": "T2w", "ceagent": "gd", "datatype": "anat"}),
    "run-1_ce-gd_T1w": ("", False, {"suffix": "T1w", "ceagent": "gd", "run": 1}),
    "run-*_FLAIR": ("", False, {"suffix": "FLAIR", "run": ANY}),
    "acq-*_rec-norm_T1w": ("", False, {"suffix": "T1w", "acquisition": ANY, "reconstruction": "norm"}),
    "acq-a_*_T1w": ("", True, {"suffix": "T1w", "acquisition": "a"}),
    "*_T2w": ("", True, {"suffix": "T2w"}),
    "anat/*_T2w": ("", True, {"suffix": "T2w", "datatype": "anat"}),
    "func/task-rest_bold": ("", False, {"suffix": "bold", "task": "rest", "datatype": "func"}),
    "dwi/T2w": ("", False, {"suffix": "T2w", "datatype": "dwi"}),
    "derivatives/manual/desc-tumour_dseg": ("derivatives/manual", False, {"suffix": "dseg", "desc": "tumour"}),
    "derivatives/manual/space-*_desc-tumour_dseg": (
        "derivatives/manual",
        False,
        {"suffix": "dseg", "desc": "tumour", "space": ANY},
    ),
    "derivatives/manual/anat/*_label-core_probseg": (
        "derivatives/manual",
        True,
        {"suffix": "probseg", "label": "core"},
    ),
    "derivatives/undescribed/desc-preproc_T1w": (
        "derivatives/undescribed",
        False,
        {"suffix": "T1w", "desc": "preproc"},
    ),
    "derivatives/undescribed/T9w": ("derivatives/undescribed", False, {"suffix": "T9w"}),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Make empty files with all names, with and without session, as .nii and .nii.gz, and many other files."""
    root = tmp_path_factory.mktemp("bids")
    endings = itertools.cycle([".nii.gz", ".nii", ".nii.gz"])
    for subject, sessions in SESSIONS.items():
        for session in sessions:
            parts = [f"sub-{subject}"] + ([f"ses-{session}"] if session else [])
            name, place = "_".join(parts), "/".join(parts)
            for entities, suffix in itertools.product(RAW, ["T1w", "T2w", "FLAIR"]):
                if (subject, entities, suffix) != ("02", "", "FLAIR"):  # a contrast is missing
                    touch(root / place / "anat" / f"{name}_{entities}{suffix}{next(endings)}")
            touch(root / place / "dwi" / f"{name}_T2w.nii.gz")
            touch(root / place / "func" / f"{name}_task-rest_bold.nii.gz")
            touch(root / place / "anat" / f"._{name}_T1w.nii.gz")
            touch(root / place / "anat" / f"{name}_T1w.json")
            touch(root / "sourcedata" / place / "anat" / f"{name}_T1w.nii.gz")
            for pipeline, what in itertools.product(["manual", "undescribed"], MADE):
                touch(root / "derivatives" / pipeline / place / "anat" / f"{name}_{what}{next(endings)}")
    describe(root, "raw")
    describe(root / "derivatives/manual", "derivative")
    return root


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def describe(folder, kind):
    about = {"Name": kind, "BIDSVersion": "1.10.0", "DatasetType": kind, "GeneratedBy": [{"Name": "test"}]}
    (folder / "dataset_description.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def layouts(tree):
    from bids import BIDSLayout, BIDSLayoutIndexer

    indexer = BIDSLayoutIndexer(validate=False, index_metadata=False)
    return {
        folder: BIDSLayout(tree / folder, validate=False, indexer=indexer, config=["bids", "derivatives"])
        for folder in ("", "derivatives/manual", "derivatives/undescribed")
    }


@pytest.mark.parametrize("text", FILTERS)
def test_a_filter_finds_the_files_that_pybids_finds(text, tree, layouts):
    from bids.layout import Query

    folder, is_open, asked = FILTERS[text]
    asked = {name: Query.ANY if value == ANY else value for name, value in asked.items()}
    others = set(PYBIDS_NAMES.values()) - {"subject", "session"} - set(asked)
    closed = {} if is_open else dict.fromkeys(others, Query.NONE)
    theirs = {}
    for file in layouts[folder].get(extension=[".nii", ".nii.gz"], **closed, **asked):
        entities = file.get_entities()
        session = f"_ses-{entities['session']}" if "session" in entities else ""
        theirs.setdefault(f"sub-{entities['subject']}{session}", set()).add(file.path)
    ours = find_bids(Wanted(tree, {"asked": text})).paths["contrast", "asked"]
    assert {subject: {str(path) for path in paths} for subject, paths in ours.items()} == theirs
    assert theirs or text.endswith("T9w")


def test_entities_of_every_file_are_those_of_pybids(tree, layouts):
    compared = 0
    for layout in layouts.values():
        for file in layout.get(extension=[".nii", ".nii.gz"]):
            path = Path(file.path)
            entities, suffix = parse_name(path)
            theirs = {key: str(value) for key, value in file.get_entities().items()}
            assert theirs.pop("suffix") == suffix and theirs.pop("datatype") == path.parent.name
            assert path.name.endswith(theirs.pop("extension"))
            assert theirs == {PYBIDS_NAMES[key]: value for key, value in entities.items()}
            compared += 1
    assert compared == len([path for path in walk_scans(tree) if "sourcedata" not in path.parts])
