"""BraTS, the Medical Segmentation Decathlon and nnU-Net's raw folders, as released."""

import shutil

import numpy as np
import pytest

from data.layouts.subjects import find_subjects
from tests.layouts import AFFINE, corner, ramp, save, save_json, write_brats, write_msd, write_nnunet
from tests.readers import problems_of_subject, read_contrasts, read_label
from utils.checks import InputError
from utils.config.data import Wanted

BRATS = {"t1gd": "t1ce", "flair": "flair", "native": "T1"}
TUMOUR = {"enhancing": ["enhancing"], "core_rest": ["necrosis"], "oedema": ["oedema"]}


def brats(root, **keys):
    return find_subjects(Wanted(root, BRATS, layout="brats", labels=TUMOUR, **keys))


@pytest.mark.parametrize(("is_new", "subject"), [(False, "BraTS19_CBICA_AAB_1"), (True, "BraTS-GLI-00005-101")])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_brats_of_either_generation_gives_the_same_arrays(tmp_path, is_new, subject, ending):
    write_brats(tmp_path, subject, is_new, "HGG", ending)
    [files] = brats(tmp_path).values()
    assert files.subject == subject
    assert problems_of_subject(files, BRATS, labels=TUMOUR) == []
    volume, affine = read_contrasts(files, ["flair", "native", "t1gd"], BRATS)
    np.testing.assert_array_equal(volume, np.stack([ramp(3), ramp(0), ramp(1)], -1))
    np.testing.assert_allclose(affine, AFFINE, rtol=1e-6)
    # Classes are numbered in the order of the config: enhancing, necrosis, oedema.
    np.testing.assert_array_equal(read_label(files, TUMOUR), corner([2, 3, 1]))


def test_a_mixed_brats_collection_is_read_subject_by_subject(tmp_path):
    write_brats(tmp_path, "BraTS2021_00000", False, "old")
    write_brats(tmp_path, "BraTS-GLI-00000-000", True, "new")
    found = brats(tmp_path)
    labels = [read_label(files, TUMOUR) for files in found.values()]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert [files.label_names["enhancing"] for files in found.values()] == [(3,), (4,)]


def test_scans_of_one_person_at_two_times_are_recognised(tmp_path):
    for name in ("BraTS-GLI-00005-100", "BraTS-GLI-00005-101", "BraTS-GLI-00006-100"):
        write_brats(tmp_path, name, True)
    people = ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00006"]
    assert [files.person for files in brats(tmp_path).values()] == people


def test_a_value_of_the_other_generation_is_refused(tmp_path):
    write_brats(tmp_path, "BraTS2021_00000", False, values=[1, 2, 3])
    write_brats(tmp_path, "BraTS-GLI-00000-000", True, values=[1, 2, 4])
    new, old = [problems_of_subject(files, BRATS, labels=TUMOUR) for files in brats(tmp_path).values()]
    assert "_seg.nii.gz' holds the values 3, which data.labels does not name" in old[0] and len(old) == 1
    assert "-seg.nii.gz' holds the values 4 (resection_cavity), which data.labels does not name" in new[0]


def test_mistakes_with_brats(tmp_path):
    write_brats(tmp_path, "BraTS2021_00000", False)
    with pytest.raises(InputError, match="data.contrasts.x: 'flare' is not one of BraTS; did you mean 'flair'"):
        find_subjects(Wanted(tmp_path, {"x": "flare"}, layout="brats"))
    with pytest.raises(InputError, match="the label map of BraTS2021_00000 has no name 'edema'; did you mean 'oedema'"):
        find_subjects(Wanted(tmp_path, BRATS, layout="brats", labels={"edema": ["edema"]}))
    shutil.copytree(tmp_path / "BraTS2021_00000", tmp_path / "copy")
    with pytest.raises(InputError, match=r"2 files match .*/BraTS2021_00000/.*, .*/copy/.*\); keep the right one"):
        brats(tmp_path)
    shutil.rmtree(tmp_path / "copy")
    (tmp_path / "BraTS2021_00000" / "BraTS2021_00000_flair.nii.gz").unlink()
    with pytest.raises(InputError, match="contrast 'flair' is missing: no file '.*BraTS2021_00000_flair.nii.gz or"):
        brats(tmp_path)
    write_brats(tmp_path, "BraTS-PED-00001-000", True)
    with pytest.raises(InputError, match="BraTS-PED-00001-000 has no name 'enhancing'; known: none, give numbers"):
        brats(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no file below '.*empty' matches '{subject}_t1ce.nii.gz or {subject}-t1c.nii"):
        brats(tmp_path / "empty")


def test_two_naming_schemes_of_one_subject(tmp_path):
    write_brats(tmp_path, "BraTS-GLI-1", False)
    write_brats(tmp_path, "BraTS-GLI-1", True)
    with pytest.raises(InputError, match="BraTS-GLI-1: has files of both naming schemes"):
        brats(tmp_path)


MSD, ZONES = {"diffusion": "adc", "t2": "T2"}, {"central": ["TZ"], "peripheral": ["PZ"]}


def test_msd(tmp_path):
    write_msd(tmp_path)
    found = find_subjects(Wanted(tmp_path, MSD, layout="msd", labels=ZONES))
    assert list(found) == ["prostate_00", "prostate_01"]
    files = found["prostate_01"]
    assert problems_of_subject(files, MSD, labels=ZONES) == []
    volume, _ = read_contrasts(files, ["t2", "diffusion"], MSD)
    np.testing.assert_array_equal(volume, np.stack([ramp(1), 5000 - ramp(1)], -1))
    np.testing.assert_array_equal(read_label(files, ZONES), corner([2, 1]))
    everyone = find_subjects(Wanted(tmp_path, MSD, layout="msd", labels=ZONES, test_images=True))
    assert [files.label is None for files in everyone.values()] == [False, False, True]
    assert not any(files.label for files in find_subjects(Wanted(tmp_path, MSD, layout="msd")).values())


def test_mistakes_with_msd(tmp_path):
    write_msd(tmp_path)
    with pytest.raises(InputError, match="'T1' is not one of the channels of .*dataset.json; known: T2, ADC"):
        find_subjects(Wanted(tmp_path, {"t1": "T1"}, layout="msd"))
    save(tmp_path / "imagesTr/prostate_00.nii.gz", np.stack([ramp()] * 3, -1))
    files = find_subjects(Wanted(tmp_path, MSD, layout="msd"))["prostate_00"]
    expected = r"is (9, 8, 7, 3), expected 4 axes, the last of 2 volumes; correct dataset.json"
    assert expected in problems_of_subject(files, MSD)[0]
    (tmp_path / "imagesTr/prostate_00.nii.gz").unlink()
    with pytest.raises(InputError, match="prostate_00: '.*prostate_00.nii.gz' does not exist; add it"):
        find_subjects(Wanted(tmp_path, MSD, layout="msd"))
    for content, line in (
        ({"modality": {"0": "T2"}, "labels": {}}, "lacks training"),
        ({"training": [], "labels": {}}, "lacks channel_names or modality"),
        ({"training": ["x"], "labels": {}, "modality": {"0": "T2", "1": "ADC"}}, "does not follow its layout"),
    ):
        save_json(tmp_path / "dataset.json", content)
        with pytest.raises(InputError, match=f"dataset.json: {line}"):
            find_subjects(Wanted(tmp_path, MSD, layout="msd"))
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(InputError, match="dataset.json: not readable as JSON .*; fix it, or copy it again"):
        find_subjects(Wanted(tmp_path, MSD, layout="msd"))
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(InputError, match="data.root: no readable '.*dataset.json'; set data.root to the folder"):
        find_subjects(Wanted(tmp_path, MSD, layout="msd"))


def test_nnunet(tmp_path):
    write_nnunet(tmp_path)
    (tmp_path / "imagesTr/._case_001_0000.nii.gz").write_bytes(b"Mac OS X")
    found = find_subjects(Wanted(tmp_path, MSD, layout="nnunet", labels=ZONES))
    assert list(found) == ["case_001", "case_002"]
    files = found["case_002"]
    assert problems_of_subject(files, MSD, labels=ZONES) == []
    np.testing.assert_array_equal(read_contrasts(files, list(MSD), MSD)[0], np.stack([ramp(11), ramp(1)], -1))
    np.testing.assert_array_equal(read_label(files, ZONES), corner([2, 1]))
    everyone = find_subjects(Wanted(tmp_path, MSD, layout="nnunet", labels=ZONES, test_images=True))
    assert everyone["case_003"].label is None and len(everyone) == 3


def test_regions_of_nnunet_unite_values_but_may_not_overlap_as_classes(tmp_path):
    write_nnunet(tmp_path, labels={"background": 0, "gland": [1, 2], "TZ": 2})
    found = find_subjects(Wanted(tmp_path, MSD, layout="nnunet", labels={"gland": ["gland"]}))
    np.testing.assert_array_equal(read_label(found["case_001"], {"gland": ["gland"]}), corner([1, 1]))
    with pytest.raises(
        InputError, match="of case_001 .and of 1 more subject. has value 2, which 'gland' and 'TZ' share"
    ):
        find_subjects(Wanted(tmp_path, MSD, layout="nnunet", labels={"gland": ["gland"], "TZ": ["TZ"]}))


def test_mistakes_with_nnunet(tmp_path):
    write_nnunet(tmp_path, file_ending=".png")
    with pytest.raises(InputError, match="file_ending '.png' cannot be read; convert the images to .nii.gz"):
        find_subjects(Wanted(tmp_path, MSD, layout="nnunet"))
    write_nnunet(tmp_path)
    (tmp_path / "imagesTr/case_002_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="case_002: contrast 'diffusion' is missing: no file '.*case_002_0001.nii.gz'"):
        find_subjects(Wanted(tmp_path, MSD, layout="nnunet"))
