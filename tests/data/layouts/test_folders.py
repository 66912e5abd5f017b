"""CHAOS as released (DICOM and PNG) and the renal group's layout: shape, order, left and right."""

import locale
import struct

import nibabel
import numpy as np
import pytest
import SimpleITK

from data.layouts.subjects import find_subjects
from data.scans.scan import read_scan
from data.scans.volumes import write_nifti
from tests.layouts import (
    AFFINE,
    CHAOS_AFFINE,
    CHAOS_GREYS,
    CHAOS_SHAPE,
    corner,
    ramp,
    save,
    write_chaos,
    write_dicom,
    write_masks,
    write_renal,
)
from tests.readers import grid_of_subject, problems_of_subject, read_contrasts, read_label
from utils.checks import InputError
from utils.config.data import Wanted

CHAOS = {"out": "t1out", "in": "T1in"}
ORGANS = {"kidneys": ["left_kidney", "right_kidney"], "liver": ["liver"], "spleen": ["spleen"]}


def chaos(root, contrasts=CHAOS, **keys):
    return find_subjects(Wanted(root, contrasts, layout="chaos", labels=ORGANS, **keys))


def test_chaos_slices_and_masks_keep_their_pixels_and_their_place(tmp_path):
    write_chaos(tmp_path, "5")
    [files] = chaos(tmp_path).values()
    assert problems_of_subject(files, CHAOS, labels=ORGANS) == []
    volume, affine = read_contrasts(files, ["in", "out"], CHAOS)
    # The slices are named from the head down; sorted by position, they give the stack that was written.
    np.testing.assert_array_equal(volume, np.stack([ramp(0, CHAOS_SHAPE), ramp(3, CHAOS_SHAPE)], -1))
    np.testing.assert_allclose(affine, CHAOS_AFFINE, atol=1e-4)
    # liver, right kidney, left kidney, spleen are greys 63, 126, 189, 252.
    np.testing.assert_array_equal(
        read_label(files, ORGANS, (), volume.shape, affine), corner([2, 1, 1, 3], CHAOS_SHAPE)
    )
    shape, its_affine = grid_of_subject(files, ["out"], CHAOS)
    assert shape == CHAOS_SHAPE and np.array_equal(its_affine, affine)


def test_a_pixel_of_a_slice_lies_where_dicom_says(tmp_path):
    """Computed from the standard (C.7.6.2.1.1): position plus column and row steps, in LPS."""
    write_chaos(tmp_path, "5")
    files = chaos(tmp_path)["5"]
    volume, affine = read_contrasts(files, ["in"], CHAOS)
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(files.contrasts["in"] / "IMG-0004-00004.dcm"))  # second from the head
    reader.ReadImageInformation()
    position, along = (np.array(reader.GetMetaData(tag).split("\\"), float) for tag in ("0020|0032", "0020|0037"))
    row, column = 11, 3
    lps = position + along[:3] * 1.5 * column + along[3:] * 1.5 * row
    value = SimpleITK.GetArrayFromImage(reader.Execute())[0, row, column]
    index = np.linalg.inv(affine) @ [-lps[0], -lps[1], lps[2], 1]
    np.testing.assert_allclose(index[:3], [column, row, CHAOS_SHAPE[2] - 2], atol=1e-3)
    assert volume[column, row, CHAOS_SHAPE[2] - 2, 0] == value


def test_greys_near_a_code_mean_it_and_others_are_refused(tmp_path):
    write_chaos(tmp_path, "5", greys=(60, 130, 180, 245))
    np.testing.assert_array_equal(read_label(chaos(tmp_path)["5"], ORGANS), corner([2, 1, 1, 3], CHAOS_SHAPE))
    write_chaos(tmp_path, "5", greys=(63, 90, 189, 252))
    [line] = problems_of_subject(chaos(tmp_path)["5"], CHAOS, labels=ORGANS)
    assert "5/T1DUAL/Ground' holds the values 90, which data.labels does not name" in line


def test_t2spir_has_a_grid_and_labels_of_its_own(tmp_path):
    write_chaos(tmp_path, "5")
    names = {"t1in": "t1in", "t2spir": "t2spir"}
    [line, *_] = problems_of_subject(chaos(tmp_path, names)["5"], names)
    assert "T2SPIR/DICOM_anon' is (10, 8, 7) but 'InPhase' is (20, 16, 7); all files of a subject must share" in line
    assert "data.resample_to" in line
    alone = {"t2spir": "t2spir"}
    assert read_label(chaos(tmp_path, alone)["5"], {"liver": ["liver"]}).shape == (10, 8, 7)
    assert read_label(chaos(tmp_path, alone, label="T1DUAL")["5"], ORGANS).shape == CHAOS_SHAPE
    found = chaos(tmp_path, names, resample_to="t1in")["5"]
    assert problems_of_subject(found, names, labels=ORGANS) == []
    volume, affine = read_contrasts(found, list(names), names)
    np.testing.assert_allclose(affine, CHAOS_AFFINE, atol=1e-4)
    # Linear interpolation preserves a ramp: half the slope on the finer grid, the same slope across slices.
    x, y, z = np.indices(CHAOS_SHAPE)
    expected = 100 * x / 2 + 10 * y / 2 + z + 7 * 5 + 1
    np.testing.assert_allclose(volume[:19, :15, :, 1], expected[:19, :15], atol=1e-2)


def test_test_sets_have_no_labels_and_every_known_place_is_found(tmp_path):
    write_chaos(tmp_path / "CHAOS_Train_Sets/Train_Sets", "5")
    for picture in (tmp_path / "CHAOS_Train_Sets/Train_Sets/MR/5/T1DUAL/Ground").iterdir():
        picture.unlink()
    for root in (tmp_path, tmp_path / "CHAOS_Train_Sets", tmp_path / "CHAOS_Train_Sets/Train_Sets/MR"):
        assert [(name, files.label) for name, files in chaos(root).items()] == [("5", None)]


def test_mismatching_cases_are_named(tmp_path):
    write_chaos(tmp_path, "5")
    folder = tmp_path / "MR/5/T1DUAL"
    (folder / "Ground/IMG-0004-00006.png").rename(folder / "Ground/IMG-0004-00099.png")
    expected = "'.*Ground' has 7 masks and '.*InPhase' 7 slices; without its pair: IMG-0004-00006, IMG-0004-00099; "
    with pytest.raises(InputError, match=f"5: {expected}"):
        read_label(chaos(tmp_path)["5"], ORGANS)
    write_masks(folder / "Ground", np.zeros((21, 16, 1), np.uint8), ["IMG-0004-00006"])
    (folder / "Ground/IMG-0004-00099.png").unlink()
    with pytest.raises(InputError, match=r"IMG-0004-00006.png' is \(21, 16\), its slice \(20, 16\)"):
        read_label(chaos(tmp_path)["5"], ORGANS)
    (folder / "DICOM_anon/InPhase/IMG-0004-00006.dcm").unlink()
    [line] = problems_of_subject(chaos(tmp_path)["5"], CHAOS)
    assert "InPhase': slices are 6 mm apart, but 'IMG-0004-00008.dcm' and 'IMG-0004-00004.dcm' 12 mm; add the" in line


def test_a_folder_that_is_no_series(tmp_path):
    write_chaos(tmp_path, "5")
    folder = tmp_path / "MR/5/T1DUAL/DICOM_anon/OutPhase"
    write_dicom(folder, ramp(1, CHAOS_SHAPE)[..., :1], CHAOS_AFFINE, ["doubled"])
    doubled = problems_of_subject(chaos(tmp_path)["5"], CHAOS)[0]
    assert "'doubled.dcm' have the same position; keep one" in doubled or "'doubled.dcm' and" in doubled
    write_dicom(folder, ramp(1, (8, 16, 1)), CHAOS_AFFINE, ["doubled"])
    assert "differ in size, pixels or direction" in problems_of_subject(chaos(tmp_path)["5"], CHAOS)[0]
    for path in folder.iterdir():
        path.write_text("no DICOM")
    assert "OutPhase' holds no DICOM slices" in problems_of_subject(chaos(tmp_path)["5"], CHAOS)[0]


RENAL = {"echoes": {"file": "T2_mapping_PREP", "volumes": 11}, "dixon": "DIXON"}
PARTS = {
    "left_medulla": ["left_medulla"],
    "cortex": ["right_cortex", "left_cortex"],
    "right_medulla": ["right_medulla"],
}
KIDNEYS = {"right_kidney": ["right_kidney"], "left_kidney": ["left_kidney"]}


def test_renal(tmp_path):
    label = write_renal(tmp_path, "P_01_A", echoes=11)
    [files] = find_subjects(Wanted(tmp_path, RENAL, layout="renal", labels=PARTS)).values()
    assert problems_of_subject(files, RENAL, labels=PARTS) == []
    volume, affine = read_contrasts(files, ["echoes", "dixon"], RENAL)
    # Echo 10 comes after echo 9, not after echo 1.
    np.testing.assert_array_equal(volume, np.stack([*(ramp(echo) for echo in range(1, 12)), ramp(50)], -1))
    np.testing.assert_allclose(affine, AFFINE, rtol=1e-6)
    assert grid_of_subject(files, ["echoes"], RENAL)[0] == volume.shape[:3]
    parts = read_label(files, PARTS, (), volume.shape, affine)
    np.testing.assert_array_equal(parts, np.choose(label, [0, 2, 2, 1, 3]))
    kidneys = read_label(files, KIDNEYS)
    np.testing.assert_array_equal(kidneys, np.choose(label, [0, 2, 1, 2, 1]))


def test_mistakes_with_renal(tmp_path):
    write_renal(tmp_path, "P_01_A", has_cortex=False)
    with pytest.raises(InputError, match="P_01_A: '.*labelsTr' has no masks of the cortex; add them, or name kidneys"):
        find_subjects(Wanted(tmp_path, RENAL, layout="renal", labels=PARTS))
    files = find_subjects(Wanted(tmp_path, RENAL, layout="renal", labels=KIDNEYS))["P_01_A"]
    assert read_label(files, KIDNEYS).max() == 2
    assert "imagesTr' is (9, 8, 7, 3), expected 4 axes, the last of 11" in problems_of_subject(files, RENAL)[0]
    single = {"t2": "T2_mapping_PREP"}
    [line] = problems_of_subject(find_subjects(Wanted(tmp_path, single, layout="renal"))["P_01_A"], single)
    assert "expected 3 axes; list it as {file: ..., volumes: n} if it is a series" in line
    folder = tmp_path / "P_01_A/T2_mapping_PREP/labelsTr"
    save(folder / "P_01_A_t2_left_volume.nii.gz", corner([1, 1, 1, 1]))
    with pytest.raises(InputError, match="left and right masks in '.*labelsTr' share 24 voxels; correct them"):
        read_label(files, KIDNEYS)
    (folder / "P_01_A_t2_left_volume.nii.gz").unlink()
    with pytest.raises(InputError, match=r"labelsTr' has no file for \*left\*volume\*; one mask is needed"):
        read_label(files, KIDNEYS)
    save(tmp_path / "P_01_A/T2_mapping_PREP/imagesTr/e2_s028.nii", ramp(shape=(9, 8, 6)))
    series = {"t2": {"file": "T2_mapping_PREP", "volumes": 3}}
    found = find_subjects(Wanted(tmp_path, series, layout="renal"))["P_01_A"]
    (line,) = problems_of_subject(found, series)
    assert line.endswith("e2_s028.nii' is (9, 8, 6) but 'e1_s028.nii' is (9, 8, 7); resample one to the other"), line


def test_reading_dicom_leaves_the_encoding_of_text_files_alone(tmp_path):
    write_chaos(tmp_path, "5")
    before = locale.setlocale(locale.LC_ALL)
    read_contrasts(chaos(tmp_path)["5"], ["in"], CHAOS)
    read_label(chaos(tmp_path)["5"], ORGANS)
    assert locale.setlocale(locale.LC_ALL) == before


def test_a_map_of_a_dicom_scan_is_written_in_mm(tmp_path):
    write_chaos(tmp_path, "5")
    files = chaos(tmp_path)["5"]
    path = tmp_path / "map.nii.gz"
    write_nifti(path, corner([1], CHAOS_SHAPE), CHAOS_AFFINE, header_of=files.contrasts["in"])
    image = nibabel.load(path)
    assert image.header.get_xyzt_units()[0] == "mm" and int(image.header["sform_code"]) == 1
    np.testing.assert_allclose(image.affine, CHAOS_AFFINE, atol=1e-5)
    assert CHAOS_GREYS == (63, 126, 189, 252)


def scaled(path, slope, intercept=0):
    """Give a DICOM file its own slope and intercept, as scanners do that use 16 bits slice by slice."""
    content, tags = path.read_bytes(), b""
    for element in (0x1052, 0x1053, 0x1054):  # GDCM writes its own values once it has read a file
        if (place := content.find(struct.pack("<HH", 0x0028, element))) > 0:
            [length] = struct.unpack("<I", content[place + 4 : place + 8])
            content = content[:place] + content[place + 8 + length :]
    for element, value in ((0x1052, intercept), (0x1053, slope)):
        text = f"{value:g}".encode()
        text += b" " * (len(text) % 2)
        tags += struct.pack("<HHI", 0x0028, element, len(text)) + text
    pixels = content.index(struct.pack("<HHI", 0x7FE0, 0x0010, 2 * 6 * 5))
    path.write_bytes(content[:pixels] + tags + content[pixels:])


@pytest.mark.parametrize(
    "slopes",
    [(1, 1, 1, 1), (0.5, 0.5, 0.5, 0.5), (1, 0.5, 0.25, 2), (0.5, 1, 1, 1), (1, 1, 1, 40), (1, 1, 1, 0.0078125)],
    ids=["none", "one for all", "each its own", "the first", "beyond 16 bits", "a fraction at the end"],
)
def test_every_slice_has_its_own_slope(slopes, tmp_path):
    """The data type of the first slice must not round or clip the others; file names are in reverse order."""
    stored = np.random.default_rng(0).integers(0, 60_000, (6, 5, 4)).astype(np.uint16)
    write_dicom(tmp_path, stored, np.diag([-2.0, -2, 3, 1]), ["d", "b", "c", "a"])
    for name, slope in zip("dbca", slopes, strict=True):
        scaled(tmp_path / f"{name}.dcm", slope, intercept=-3 if slope != 1 else 0)
    image, problems = read_scan(tmp_path, "sub-1")
    assert problems == []
    expected = stored * np.array(slopes, np.float64) - 3 * (np.array(slopes) != 1)
    np.testing.assert_array_equal(image.values, expected)
    assert image.affine[2, 3] == 0 and image.affine[2, 2] == 3


def test_slices_twice_many_in_one_file_or_inverted_are_refused(tmp_path):
    stored = np.random.default_rng(0).integers(0, 900, (6, 5, 4))
    write_dicom(tmp_path / "twice", stored, np.diag([-2.0, -2, 3, 1]), "abcd")
    (tmp_path / "twice" / "e.dcm").write_bytes((tmp_path / "twice" / "b.dcm").read_bytes())
    assert "'b.dcm' and 'e.dcm' have the same position; keep one" in read_scan(tmp_path / "twice", "s")[1][0]

    (tmp_path / "frames").mkdir()
    before = locale.setlocale(locale.LC_ALL)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(stored.astype(np.uint16)), tmp_path / "frames" / "all.dcm")
    locale.setlocale(locale.LC_ALL, before)
    assert read_scan(tmp_path / "frames", "s") == (
        None,
        [f"s: '{tmp_path / 'frames'}': 'all.dcm' is a multi-frame file of 6 slices; convert it to NIfTI (dcm2niix)"],
    )

    write_dicom(tmp_path / "inverted", stored, np.diag([-2.0, -2, 3, 1]), "abcd")
    for path in (tmp_path / "inverted").iterdir():
        path.write_bytes(path.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
    assert "'a.dcm' shows bright as dark (MONOCHROME1); convert it" in read_scan(tmp_path / "inverted", "s")[1][0]
