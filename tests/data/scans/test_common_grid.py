"""Contrasts on different grids are refused or resampled; N4 bias correction."""

import numpy as np
import pytest

from data.layouts.subjects import SubjectFiles
from data.scans.grid import Grid, share_covered
from data.scans.resampling import correct_bias, resample
from tests.layouts import AFFINE, SHAPE, corner, ramp, save
from tests.readers import grid_of_subject, problems_of_subject, read_contrasts, read_label, read_mask
from utils.checks import InputError

CONTRASTS = {"t1": "", "t2": "", "echoes": {"file": "", "volumes": 2}}
# A finer grid with other axes: its x runs along z of the first grid, and y is reversed.
TURNED = np.array([[0, -0.75, 0, 20], [-0.5, 0, 0, 30], [0, 0, 0.5, -5], [0, 0, 0, 1.0]])


def world(shape, affine):
    """Return a linear function of position, which linear interpolation reproduces exactly."""
    places = np.stack([*np.indices(shape), np.ones(shape)], -1) @ affine.T
    return (places @ [3, 5, 7, 0] + 400).astype(np.float32)


@pytest.fixture
def files(tmp_path):
    t1 = save(tmp_path / "t1.nii.gz", world(SHAPE, AFFINE))
    t2 = save(tmp_path / "t2.nii.gz", world((21, 14, 31), TURNED), TURNED)
    echoes = np.stack([world((21, 14, 31), TURNED), 900 - world((21, 14, 31), TURNED)], -1)
    series = save(tmp_path / "echoes.nii.gz", echoes, TURNED)
    label = save(tmp_path / "label.nii.gz", corner([1, 2, 3]))
    mask = save(tmp_path / "mask.nii.gz", corner([1, 1]))
    return SubjectFiles("sub-1", {"t1": t1, "t2": t2, "echoes": series}, label, mask, resample_to="t1")


LABELS = {"a": [1], "b": [2], "c": [3]}


def test_other_grids_are_refused_with_the_cure(files):
    plain = SubjectFiles("sub-1", files.contrasts, files.label, files.mask)
    line = problems_of_subject(plain, CONTRASTS, ["t1", "t2"])[0]
    assert line.startswith("sub-1: ") and "t2.nii.gz' is (21, 14, 31) but 't1.nii.gz' is (9, 8, 7)" in line
    assert "set data.resample_to" in line
    with pytest.raises(InputError, match="is .21, 14, 31. but"):
        read_contrasts(plain, ["t1", "t2"], CONTRASTS)


def test_contrasts_are_brought_to_the_grid_of_one(files):
    assert problems_of_subject(files, CONTRASTS, labels=LABELS) == []
    volume, affine = read_contrasts(files, ["echoes", "t2", "t1"], CONTRASTS)
    np.testing.assert_allclose(affine, AFFINE, rtol=1e-6)
    assert volume.shape == (*SHAPE, 4)
    inside = volume[..., 2] > 0  # voxels that t2 covers
    assert 0.3 < inside.mean() < 1
    expected = world(SHAPE, AFFINE)
    np.testing.assert_allclose(volume[inside][:, 2], expected[inside], atol=0.01)
    np.testing.assert_allclose(volume[inside][:, 0], expected[inside], atol=0.01)
    np.testing.assert_allclose(volume[inside][:, 1], 900 - expected[inside], atol=0.01)
    np.testing.assert_array_equal(volume[..., 3], expected)
    shape, its_affine = grid_of_subject(files, ["t2"], CONTRASTS)
    assert shape == SHAPE and np.array_equal(its_affine, affine)


def test_labels_and_masks_are_resampled_by_nearest_neighbour(files, tmp_path):
    to_t2 = SubjectFiles("sub-1", files.contrasts, files.label, files.mask, resample_to="t2")
    volume, affine = read_contrasts(to_t2, ["t1"], CONTRASTS)
    label, mask = read_label(to_t2, LABELS, (), volume.shape, affine), read_mask(to_t2, volume.shape, affine)
    # Reference: the voxel of the label map nearest to the world position of each voxel of t2.
    places = (
        np.stack([*np.indices(volume.shape[:3]), np.ones(volume.shape[:3])], -1) @ (np.linalg.inv(AFFINE) @ affine).T
    )
    nearest = np.rint(places[..., :3]).astype(int)
    is_tie = np.isclose(np.abs(places[..., :3] - nearest), 0.5).any(-1)
    inside = ((nearest >= 0) & (nearest < SHAPE)).all(-1)
    nearest = np.where(inside[..., None], nearest, 0)
    expected = np.where(inside, corner([1, 2, 3])[tuple(np.moveaxis(nearest, -1, 0))], 0)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(label[~is_tie], expected[~is_tie])
    np.testing.assert_array_equal(mask[~is_tie], np.isin(expected, (1, 2))[~is_tie])
    assert read_label(to_t2, LABELS).shape == volume.shape[:3]


def test_a_scan_elsewhere_in_space_is_refused(files, tmp_path):
    far = TURNED.copy()
    far[0, 3] += 500
    save(tmp_path / "t2.nii.gz", world((21, 14, 31), TURNED), far)
    [line] = problems_of_subject(files, CONTRASTS, ["t1", "t2"])
    assert "t2.nii.gz' and " in line and "t1.nii.gz' do not overlap; correct their affines" in line


def test_without_that_contrast_a_subject_keeps_its_own_grid(files):
    alone = SubjectFiles("sub-1", {"t2": files.contrasts["t2"]}, resample_to="t1")
    assert read_contrasts(alone, ["t2"], CONTRASTS)[0].shape == (21, 14, 31, 1)


def test_share_covered():
    grid = Grid(None, (10, 10, 10), np.eye(4))
    half = np.eye(4)
    half[0, 3] = 5
    assert share_covered(grid, Grid(None, (10, 10, 10), np.eye(4))) == 1
    assert 0.4 < share_covered(grid, Grid(None, (10, 10, 10), half)) < 0.6
    half[0, 3] = 50
    assert share_covered(grid, Grid(None, (10, 10, 10), half)) == 0


def test_resampling_to_the_same_grid_changes_nothing():
    np.testing.assert_array_equal(resample(ramp(), AFFINE, SHAPE, AFFINE), ramp())
    np.testing.assert_array_equal(resample(corner([1, 2]), AFFINE, SHAPE, AFFINE, is_label=True), corner([1, 2]))


def shaded_ball():
    """Return two tissues in a ball, with a smooth field that makes one side three times as bright."""
    x, y, z = np.indices((32, 30, 28), np.float32)
    radius = np.sqrt((x - 16) ** 2 + (y - 15) ** 2 + (z - 14) ** 2)
    tissue = np.where(radius < 13, np.where(radius < 6, 600, 300), 0)
    field = np.exp((x - 16) / 30)
    noise = np.random.default_rng(0).normal(0, 5, x.shape)
    return np.maximum(tissue * field + noise, 0).astype(np.float32), (radius > 7) & (radius < 12), radius < 5


def test_n4_makes_one_tissue_equally_bright():
    shaded, outer, inner = shaded_ball()
    corrected = correct_bias(shaded, np.diag([2.0, 2.0, 2.0, 1.0]))
    before, after = (image[outer].std() / image[outer].mean() for image in (shaded, corrected))
    assert after < before / 3
    assert corrected[inner].mean() > 1.5 * corrected[outer].mean()
    np.testing.assert_array_equal(corrected, correct_bias(shaded, np.diag([2.0, 2.0, 2.0, 1.0])))


def test_only_the_named_contrasts_are_corrected(tmp_path):
    shaded, outer, _ = shaded_ball()
    paths = {name: save(tmp_path / f"{name}.nii.gz", shaded) for name in ("t1", "t2")}
    volume, _ = read_contrasts(SubjectFiles("a", paths, bias_correction=("t2",)), ["t1", "t2"], CONTRASTS)
    np.testing.assert_array_equal(volume[..., 0], shaded)
    assert volume[outer, 1].std() < volume[outer, 0].std() / 2
    save(paths["t2"], shaded - 100)
    [line] = problems_of_subject(SubjectFiles("a", paths, bias_correction=("t2",)), CONTRASTS, ["t1", "t2"])
    assert line.endswith("t2.nii.gz' has negative values; remove 't2' from data.bias_correction")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_n4_corrects_a_single_slice_in_its_plane(axis):
    """For slices along any axis of the file."""
    shaded, outer, inner = (np.moveaxis(array[..., 14:15], 2, axis) for array in shaded_ball())
    corrected = correct_bias(shaded, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert corrected.shape == shaded.shape and corrected.dtype == np.float32
    before, after = (image[outer].std() / image[outer].mean() for image in (shaded, corrected))
    assert after < before / 3
    assert corrected[inner].mean() > 1.5 * corrected[outer].mean()


def test_n4_of_a_line_of_voxels_is_refused_before_work_starts(tmp_path):
    save(tmp_path / "t2.nii.gz", np.arange(9, dtype=np.float32).reshape(1, 9, 1))
    files = SubjectFiles("a", {"t2": tmp_path / "t2.nii.gz"}, bias_correction=("t2",))
    [line] = problems_of_subject(files, {"t2": "t2.nii.gz"})
    assert line.endswith("t2.nii.gz' is a single line of voxels; remove 't2' from data.bias_correction")
