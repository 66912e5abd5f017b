"""Search for the files of every subject."""

import nibabel
import numpy as np
import pytest

from data.layouts.subjects import SubjectFiles, channel_names, file_of_channel, find_subjects
from tests.readers import problems_of_subject, read_contrasts, read_label
from utils.checks import InputError
from utils.config.data import Wanted

SERIES = {"t1": "{subject}/t1.nii.gz", "echoes": {"file": "{subject}/echoes.nii.gz", "volumes": 3}}


def make_files(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_one_folder_per_subject(tmp_path):
    make_files(tmp_path, "b/t1.nii.gz", "b/echoes.nii.gz", "a/t1.nii.gz", "a/echoes.nii.gz", "a/label.nii.gz", "x.json")
    found = find_subjects(Wanted(tmp_path, SERIES, label="{subject}/label.nii.gz"))
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
    found = find_subjects(Wanted(tmp_path, {"flair": pattern}))
    assert {subject: entry.contrasts["flair"] for subject, entry in found.items()} == {"BraTS_1": tmp_path / files[0]}


def test_every_missing_file_is_listed_at_once(tmp_path):
    make_files(tmp_path, "a/t1.nii.gz", "b/echoes.nii.gz", "c/label.nii.gz", "d/t1.nii.gz", "d/echoes.nii.gz")
    with pytest.raises(InputError) as error:
        find_subjects(Wanted(tmp_path, SERIES, label="{subject}/label.nii.gz", mask="{subject}/mask.nii.gz"))
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
    assert lines[0].endswith(f"no file '{tmp_path}/a/echoes.nii.gz'; add it, or remove the subject from the folder")


def test_what_a_user_gets_wrong(tmp_path):
    with pytest.raises(InputError, match=r"data.root: '.*/absent' is not a folder; set data.root"):
        find_subjects(Wanted(tmp_path / "absent", SERIES))
    with pytest.raises(InputError, match=r"no file below '.*' matches '\{subject\}/t1.nii.gz', .*; check data.root"):
        find_subjects(Wanted(tmp_path, SERIES))
    with pytest.raises(InputError, match=r"pattern 't1.nii.gz' has no '\{subject\}'"):
        find_subjects(Wanted(tmp_path, {"t1": "t1.nii.gz"}))
    make_files(tmp_path, "a/1_t1.nii.gz", "a/2_t1.nii.gz")
    with pytest.raises(InputError, match=r"a: 2 files match '\{subject\}/\*_t1.nii.gz' \(1_t1.nii.gz, 2_t1.nii.gz\)"):
        find_subjects(Wanted(tmp_path, {"t1": "{subject}/*_t1.nii.gz"}))


def test_channels_of_a_series():
    assert channel_names(SERIES, ["echoes", "t1"]) == ["echoes_1", "echoes_2", "echoes_3", "t1"]
    assert file_of_channel(SERIES, "t1") == ("t1", None)
    assert file_of_channel(SERIES, "echoes_3") == ("echoes", 2)
    with pytest.raises(InputError, match="'echoes_4' is not in data.contrasts; did you mean 'echoes_"):
        file_of_channel(SERIES, "echoes_4")
    with pytest.raises(InputError, match="'flair' is not in data.contrasts; known: t1, echoes_1"):
        file_of_channel(SERIES, "flair")


SHAPE, AFFINE = (6, 5, 4), np.diag([-0.6, -0.6, 4.0, 1.0])


def write(path, seed, volumes=0, values=None):
    """Write noise, or a label map of these values, and the hidden file that macOS adds to archives."""
    generator, shape = np.random.default_rng(seed), (*SHAPE, volumes) if volumes else SHAPE
    array = generator.uniform(1, 9, shape).astype("f4") if values is None else generator.choice(values, SHAPE)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    path.with_name(f"._{path.name}").write_bytes(b"Mac OS X resource fork")
    return array


def test_prostate_of_the_medical_segmentation_decathlon(tmp_path):
    images = {name: write(tmp_path / f"imagesTr/{name}.nii.gz", 1, 2) for name in ("prostate_00", "prostate_01")}
    images["prostate_03"] = write(tmp_path / "imagesTs/prostate_03.nii.gz", 2, 2)
    labels = {
        name: write(tmp_path / f"labelsTr/{name}.nii.gz", 3, values=np.uint8([0, 1, 2])) for name in list(images)[:2]
    }
    make_files(tmp_path, "dataset.json", "._dataset.json", "imagesTr/.DS_Store")
    contrasts = {"mr": {"file": "images*/{subject}.nii.gz", "volumes": 2}}
    names = {"peripheral_zone": [1], "central_gland": [2]}
    found = find_subjects(Wanted(tmp_path, contrasts, "labelsTr/{subject}.nii.gz"))
    assert list(found) == list(images)
    assert [files.label is not None for files in found.values()] == [True, True, False]
    for name, files in found.items():
        assert problems_of_subject(files, contrasts, labels=names) == []
        volume, affine = read_contrasts(files, ["mr_2", "mr_1"], contrasts)
        np.testing.assert_array_equal(volume, images[name][..., ::-1])
        np.testing.assert_allclose(affine, AFFINE, rtol=1e-6)
        if files.label:
            np.testing.assert_array_equal(read_label(files, names), labels[name])


def test_brats_2021(tmp_path):
    contrasts = {name: f"{{subject}}/{{subject}}_{name}.nii.gz" for name in ("flair", "t1", "t1ce", "t2")}
    names = {"necrosis": [1], "oedema": [2], "enhancing": [4]}
    for number, subject in enumerate(["BraTS2021_00000", "BraTS2021_00002"]):
        scans = {name: write(tmp_path / subject / f"{subject}_{name}.nii.gz", number) for name in contrasts}
        label = write(tmp_path / subject / f"{subject}_seg.nii.gz", number, values=np.int16([0, 1, 2, 4]))
    found = find_subjects(Wanted(tmp_path, contrasts, "{subject}/{subject}_seg.nii.gz"))
    assert list(found) == ["BraTS2021_00000", "BraTS2021_00002"]
    files = found[subject]
    assert problems_of_subject(files, contrasts, labels=names) == []
    volume, _ = read_contrasts(files, list(contrasts), contrasts)
    np.testing.assert_array_equal(volume, np.stack(list(scans.values()), -1))
    np.testing.assert_array_equal(read_label(files, names), np.where(label == 4, 3, label))
    [line] = problems_of_subject(files, contrasts, labels={"core": [1, 4]})
    assert f"{subject}_seg.nii.gz' holds the values 2, which data.labels does not name" in line


def test_five_contrasts_of_the_kidneys(tmp_path):
    names = ["dixon", "t1_map", "t2_map", "bold", "diffusion"]
    contrasts = {name: f"{{subject}}/*{name}.nii.gz" for name in names}
    for number in (7, 12):
        for place, name in enumerate(names):
            write(tmp_path / f"sub-{number:02d}" / f"2023_{name}.nii.gz", place)
    write(tmp_path / "sub-07" / "label.nii.gz", 3, values=np.uint8([0, 1, 2]))
    found = find_subjects(Wanted(tmp_path, contrasts, "{subject}/label.nii.gz"))
    assert [files.label is not None for files in found.values()] == [True, False]
    assert read_contrasts(found["sub-12"], names, contrasts)[0].shape == (*SHAPE, 5)
    (tmp_path / "sub-12" / "2023_bold.nii.gz").unlink()
    with pytest.raises(InputError, match="sub-12: contrast 'bold' is missing: no file '.*sub-12/.bold.nii.gz'; add it"):
        find_subjects(Wanted(tmp_path, contrasts, "{subject}/label.nii.gz"))
