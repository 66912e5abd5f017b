"""Segmentations of 3D Slicer, read back with slicerio, which defines them, and with SimpleITK."""

import numpy as np
import pytest
import SimpleITK

from data.scans.seg_nrrd import check_slicerio, write_seg_nrrd
from data.scans.volumes import write_nifti
from utils.checks import InputError
from utils.label_colours import legend_of

LEGEND = legend_of({"liver": 1, "left_kidney": 2, "spleen": 3}, {"liver": "#0A0BFF"})
TURN = np.array([[0.0, -1.5, 0.3], [2.0, 0.1, 0.0], [-0.2, 0.0, 3.0]])  # mm, oblique, with axes exchanged
AFFINES = {
    "RAS": np.diag([1.0, 2.0, 3.0, 1.0]),
    "LPS": np.array([[-1.5, 0, 0, 90], [0, -1.5, 0, 120], [0, 0, 5, -40], [0, 0, 0, 1.0]]),
    "oblique": np.block([[TURN, np.array([[10.0], [-20.0], [30.5]])], [np.zeros((1, 3)), np.ones((1, 1))]]),
}
slicerio = pytest.importorskip("slicerio", reason="slicerio is not installed: pip install slicerio")


def label_map():
    classes = np.zeros((7, 6, 4), np.uint8)
    classes[1:4, 2:5, 1:3], classes[5, 1, 2] = 1, 2  # no voxel of the third class
    return classes


@pytest.mark.parametrize("orientation", AFFINES)
def test_voxels_geometry_names_and_colours_are_read_back(tmp_path, orientation):
    path, affine = tmp_path / "new" / "sub-1.seg.nrrd", AFFINES[orientation]
    write_seg_nrrd(path, label_map(), affine, LEGEND)
    found = slicerio.read_segmentation(str(path))
    assert found["voxels"].dtype == np.uint8
    np.testing.assert_array_equal(found["voxels"], label_map())
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ found["ijkToLPS"], affine, atol=1e-9)
    assert [each["name"] for each in found["segments"]] == ["liver", "left_kidney", "spleen"]
    assert [each["labelValue"] for each in found["segments"]] == [1, 2, 3]
    for each, label in zip(found["segments"], LEGEND, strict=True):
        assert tuple(round(255 * part) for part in each["color"]) == label.rgb
        assert each["extent"] == [0, 6, 0, 5, 0, 3] and each["layer"] == 0
    assert found["masterRepresentation"] == "Binary labelmap"
    assert slicerio.segment_mask(found, "left_kidney").sum() == 1
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("orientation", ["RAS", "LPS"])
def test_it_lies_where_the_nifti_file_lies(tmp_path, orientation):
    """SimpleITK reads both formats by code of its own."""
    affine = AFFINES[orientation]
    write_seg_nrrd(tmp_path / "a.seg.nrrd", label_map(), affine, LEGEND)
    write_nifti(tmp_path / "a.nii.gz", label_map(), affine, intent="label")
    nrrd, nifti = (SimpleITK.ReadImage(str(tmp_path / name)) for name in ("a.seg.nrrd", "a.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(nrrd), SimpleITK.GetArrayFromImage(nifti))
    for of in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(nrrd, of)(), getattr(nifti, of)(), atol=1e-5)


def test_the_same_label_map_gives_the_same_bytes(tmp_path, monkeypatch):
    import nrrd.writer

    class Later(nrrd.writer.datetime):
        @classmethod
        def utcnow(cls):
            return cls(2040, 1, 1)

    write_seg_nrrd(tmp_path / "a.seg.nrrd", label_map(), AFFINES["LPS"], LEGEND)
    monkeypatch.setattr("nrrd.writer.datetime", Later)
    write_seg_nrrd(tmp_path / "b.seg.nrrd", label_map(), AFFINES["LPS"], LEGEND)
    assert (tmp_path / "a.seg.nrrd").read_bytes() == (tmp_path / "b.seg.nrrd").read_bytes()
    assert b"2040" not in (tmp_path / "b.seg.nrrd").read_bytes()


def test_without_slicerio_the_option_says_what_to_install(monkeypatch):
    check_slicerio("--seg-nrrd")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="--seg-nrrd: needs the package slicerio; type: pip install slicerio"):
        check_slicerio("--seg-nrrd")
