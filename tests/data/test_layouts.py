"""Finding the files of every subject."""

import pytest

from data.layouts import SubjectFiles, channel_names, file_of_channel, find_subjects
from utils.checks import InputError

SERIES = {"t1": "{subject}/t1.nii.gz", "echoes": {"file": "{subject}/echoes.nii.gz", "volumes": 3}}


def make_files(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_one_folder_per_subject(tmp_path):
    make_files(tmp_path, "b/t1.nii.gz", "b/echoes.nii.gz", "a/t1.nii.gz", "a/echoes.nii.gz", "a/label.nii.gz", "x.json")
    found = find_subjects(tmp_path, SERIES, label="{subject}/label.nii.gz")
    assert list(found) == ["a", "b"]
    contrasts = {"t1": tmp_path / "a/t1.nii.gz", "echoes": tmp_path / "a/echoes.nii.gz"}
    assert found["a"] == SubjectFiles("a", contrasts, tmp_path / "a/label.nii.gz")
    assert found["b"].label is None


@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("{subject}/{subject}_flair.nii.gz", ["BraTS_1/BraTS_1_flair.nii.gz", "BraTS_1/BraTS_2_flair.nii.gz"]),
        ("images/{subject}_flair.nii.gz", ["images/BraTS_1_flair.nii.gz", "images/BraTS_1_t1.nii.gz"]),
        ("{subject}/*_flair.nii.gz", ["BraTS_1/scan[7]_flair.nii.gz", ".cache/x_flair.nii.gz"]),
        (
            "set [1]/sub-{subject}/anat/flair.nii.gz",
            ["set [1]/sub-BraTS_1/anat/flair.nii.gz", "set 1/sub-b/anat/flair.nii.gz"],
        ),
    ],
)
def test_other_layouts(tmp_path, pattern, files):
    make_files(tmp_path, *files)
    found = find_subjects(tmp_path, {"flair": pattern})
    assert {subject: entry.contrasts["flair"] for subject, entry in found.items()} == {"BraTS_1": tmp_path / files[0]}


def test_every_missing_file_is_listed_at_once(tmp_path):
    make_files(tmp_path, "a/t1.nii.gz", "b/echoes.nii.gz", "c/label.nii.gz", "d/t1.nii.gz", "d/echoes.nii.gz")
    with pytest.raises(InputError) as error:
        find_subjects(tmp_path, SERIES, label="{subject}/label.nii.gz", mask="{subject}/mask.nii.gz")
    lines = error.value.lines
    assert [line.split(" is missing")[0] for line in lines] == [
        "a: contrast 'echoes'",
        "a: mask 'mask'",
        "b: contrast 't1'",
        "b: mask 'mask'",
        "c: contrast 't1'",
        "c: contrast 'echoes'",
        "c: mask 'mask'",
        "d: mask 'mask'",
    ]
    assert lines[0].endswith(f"no file '{tmp_path}/a/echoes.nii.gz'; add it, or take the subject out of the folder")


def test_what_a_user_gets_wrong(tmp_path):
    with pytest.raises(InputError, match=r"data.root: '.*/absent' is not a folder; set data.root"):
        find_subjects(tmp_path / "absent", SERIES)
    with pytest.raises(InputError, match=r"no file below '.*' matches '\{subject\}/t1.nii.gz', .*; check data.root"):
        find_subjects(tmp_path, SERIES)
    with pytest.raises(InputError, match=r"pattern 't1.nii.gz' has no '\{subject\}'"):
        find_subjects(tmp_path, {"t1": "t1.nii.gz"})
    make_files(tmp_path, "a/1_t1.nii.gz", "a/2_t1.nii.gz")
    with pytest.raises(InputError, match=r"a: 2 files match '\{subject\}/\*_t1.nii.gz' \(1_t1.nii.gz, 2_t1.nii.gz\)"):
        find_subjects(tmp_path, {"t1": "{subject}/*_t1.nii.gz"})


def test_channels_of_a_series():
    assert channel_names(SERIES, ["echoes", "t1"]) == ["echoes_1", "echoes_2", "echoes_3", "t1"]
    assert file_of_channel(SERIES, "t1") == ("t1", None)
    assert file_of_channel(SERIES, "echoes_3") == ("echoes", 2)
    with pytest.raises(InputError, match="'echoes_4' is not in data.contrasts; did you mean 'echoes_"):
        file_of_channel(SERIES, "echoes_4")
    with pytest.raises(InputError, match="'flair' is not in data.contrasts; known: t1, echoes_1"):
        file_of_channel(SERIES, "flair")
