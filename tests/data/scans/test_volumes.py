"""Reading, checking and writing of NIfTI files."""

import gzip

import nibabel
import numpy as np
import pytest

from data.layouts.subjects import SubjectFiles
from data.scans.volumes import read_label_map, write_nifti
from tests.readers import (
    grid_of_subject,
    problems_of_subject,
    read_constraint_map,
    read_contrasts,
    read_label,
    read_mask,
)
from utils.checks import InputError

SHAPE = (7, 6, 5)
AFFINE = np.array([[-1.5, 0.1, 0, 30], [0.1, 1.5, 0, -20], [0, 0, 3, 5], [0, 0, 0, 1.0]])
CONTRASTS = {"t1": "t1.nii.gz", "echoes": {"file": "echoes.nii.gz", "volumes": 2}}
LABELS = {"liver": [1], "kidneys": [2, 3]}


def image(seed, *extra):
    return np.random.default_rng(seed).integers(0, 200, (*SHAPE, *extra)).astype(np.int16)


def label_map():
    label = np.zeros(SHAPE, np.uint8)
    label[1:3], label[3, 2], label[4, 2:4], label[5, 5] = 1, 2, 3, 9
    return label


def save(path, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture
def files(tmp_path):
    """Return a valid subject; each test damages one file."""
    arrays = {"t1": image(1), "echoes": image(2, 2), "label": label_map(), "mask": (image(3) > 50).astype(np.uint8)}
    for name, array in arrays.items():
        save(tmp_path / f"{name}.nii.gz", array)
    contrasts = {name: tmp_path / f"{name}.nii.gz" for name in CONTRASTS}
    paths = tmp_path / "label.nii.gz", tmp_path / "mask.nii.gz"
    return SubjectFiles("sub-07", contrasts, *paths, empty_labels="refuse")


def problems(files):
    return problems_of_subject(files, CONTRASTS, labels=LABELS, ignored=[9])


def test_a_sound_subject_is_read_as_it_is(files):
    assert problems(files) == []
    volume, affine = read_contrasts(files, ["echoes", "t1"], CONTRASTS)
    assert volume.dtype == np.float32
    assert np.array_equal(volume, np.concatenate([image(2, 2), image(1)[..., None]], axis=-1))
    assert affine == pytest.approx(AFFINE, abs=1e-5)
    second_echo, _ = read_contrasts(files, ["echoes_2"], CONTRASTS)
    assert np.array_equal(second_echo[..., 0], image(2, 2)[..., 1])
    shape, header_affine = grid_of_subject(files, ["echoes", "t1"], CONTRASTS)
    assert shape == SHAPE
    assert np.array_equal(header_affine, affine)


def test_labels_become_class_indices_in_the_order_of_the_config(files):
    stored, classes = label_map(), read_label(files, LABELS, ignored=[9], shape=SHAPE, affine=AFFINE)
    for value, index in {0: 0, 1: 1, 2: 2, 3: 2, 9: 0}.items():
        assert (classes[stored == value] == index).all()
    assert classes.dtype == np.uint8
    assert np.array_equal(read_mask(files, SHAPE, AFFINE), image(3) > 50)


def test_scaled_integers_and_trailing_axes_of_one(files):
    scaled = nibabel.Nifti1Image(image(1)[..., None], AFFINE)
    scaled.header.set_slope_inter(0.5, 10)
    nibabel.save(scaled, files.contrasts["t1"])
    written = nibabel.load(files.contrasts["t1"]).get_fdata()[..., 0]
    assert np.array_equal(read_contrasts(files, ["t1"], CONTRASTS)[0][..., 0], written.astype(np.float32))


def spoil_truncated(files):
    path = files.contrasts["t1"]
    save(path, np.random.default_rng(0).random((40, 40, 20)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:30000])


def spoil_nan(files):
    values = image(1).astype(np.float32)
    values[2, 3, 1], values[0, 0, 0] = np.nan, np.inf
    save(files.contrasts["t1"], values)


def spoil_affine(files):
    shifted = AFFINE.copy()
    shifted[1, 3] += 0.75
    save(files.contrasts["echoes"], image(2, 2), shifted)


def spoil_axes(files):
    save(files.contrasts["echoes"], image(2, 2), AFFINE @ np.diag([1, 1, 1.02, 1]))


def spoil_echo(files):
    values = image(2, 2)
    values[..., 1] = 4
    save(files.contrasts["echoes"], values)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (spoil_truncated, "t1.nii.gz' is truncated; copy or export it again"),
        (spoil_nan, "t1.nii.gz' has 2 voxels that are NaN or infinite; "),
        (spoil_affine, "echoes.nii.gz' and 't1.nii.gz' differ in origin by 0.499 voxels"),
        (spoil_axes, "echoes.nii.gz' and 't1.nii.gz' differ in voxel axes by 0.02 voxels; all files of a subject"),
        (spoil_echo, "echoes.nii.gz', volume 2, is constant (4 everywhere)"),
        (lambda f: save(f.contrasts["t1"], np.full(SHAPE, 3.0)), "t1.nii.gz' is constant (3 everywhere)"),
        (lambda f: save(f.contrasts["t1"], image(1, 3)), "t1.nii.gz' is (7, 6, 5, 3), expected 3 axes; list it as"),
        (
            lambda f: save(f.contrasts["echoes"], image(1)),
            "echoes.nii.gz' is (7, 6, 5), expected 4 axes, the last of",
        ),
        (lambda f: save(f.contrasts["echoes"], image(1, 3)), "echoes.nii.gz' is (7, 6, 5, 3), expected 4 axes"),
        (lambda f: save(f.contrasts["echoes"], image(2, 2)[1:]), "echoes.nii.gz' is (6, 6, 5) but 't1.nii.gz' is (7"),
        (lambda f: save(f.contrasts["t1"], image(1).astype(np.complex64)), "t1.nii.gz' holds complex64 values"),
        (lambda f: f.contrasts["t1"].write_bytes(b"not a scan"), "t1.nii.gz' is not a gzip file"),
        (lambda f: f.contrasts["t1"].write_bytes(gzip.compress(b"no" * 999)), "t1.nii.gz' is not a NIfTI file"),
        (lambda f: f.contrasts["t1"].write_bytes(b""), "t1.nii.gz' is empty (0 bytes)"),
        (lambda f: f.contrasts["t1"].unlink(), "t1.nii.gz' does not exist; add it"),
        (lambda f: f.contrasts.pop("t1"), "contrast 't1' is missing"),
        (lambda f: save(f.label, label_map() + 3), "label.nii.gz' holds the values 4, 5, 6, 12, which data.labels"),
        (lambda f: save(f.label, label_map() * 0.5), "label.nii.gz' holds the values 0.5, 1.5, 4.5, which"),
        (lambda f: save(f.label, np.where(label_map() == 9, 9, 0).astype(np.uint8)), "label.nii.gz' has no labelled"),
        (lambda f: save(f.label, label_map()[:, :, 1:]), "label.nii.gz' is (7, 6, 4) but 't1.nii.gz' is (7, 6, 5)"),
        (lambda f: save(f.label, label_map(), np.eye(4)), "label.nii.gz' and 't1.nii.gz' differ in origin by"),
        (lambda f: save(f.label, image(1, 2)), "label.nii.gz' is (7, 6, 5, 2), expected 3 axes; a label map is one"),
        (lambda f: save(f.mask, np.zeros(SHAPE, np.uint8)), "mask.nii.gz' is empty; a mask needs foreground"),
        (lambda f: save(f.mask, np.full(SHAPE, np.nan)), "mask.nii.gz' holds NaN or infinite values"),
        (
            lambda f: save(f.mask, np.uint8(label_map()[1:] > 0)),
            "mask.nii.gz' is (6, 6, 5) but 't1.nii.gz' is (7, 6, 5)",
        ),
        (lambda f: save(f.mask, image(1, 2)), "mask.nii.gz' is (7, 6, 5, 2), expected 3 axes; a mask is one"),
    ],
)
def test_one_spoilt_file_gives_one_line(files, spoil, expected):
    spoil(files)
    found = problems(files)
    assert any(expected in line for line in found), found
    assert all(line.startswith("sub-07: ") and "\n" not in line for line in found)
    # Another grid of the first contrast affects the other files too; everything else is one line.
    assert len(found) == 1


def test_several_problems_are_listed_together(files):
    spoil_nan(files)
    spoil_echo(files)
    save(files.label, label_map() * 0)
    assert len(problems(files)) == 3
    with pytest.raises(InputError) as error:
        read_contrasts(files, ["t1", "echoes"], CONTRASTS)
    assert len(error.value.lines) == 2


def test_rounding_of_headers_is_forgiven(files):
    save(
        files.contrasts["echoes"],
        image(2, 2),
        AFFINE + np.random.default_rng(0).normal(0, 1e-4, (4, 4)) * [[1], [1], [1], [0]],
    )
    assert problems(files) == []


def test_readers_refuse_what_the_check_lists(files):
    save(files.label, label_map() * 2)
    with pytest.raises(InputError, match="holds the values 4, 6, 18, which data.labels does not name"):
        read_label(files, LABELS)
    with pytest.raises(InputError, match=r"is \(7, 6, 5\) but the scan is \(7, 6, 9\)"):
        read_mask(files, (7, 6, 9))
    with pytest.raises(InputError, match="did you mean 'echoes_"):
        read_contrasts(files, ["echos_1"], CONTRASTS)


def test_constraint_maps(tmp_path):
    path, classes = tmp_path / "sub-07.nii.gz", (label_map() * 2).astype(np.uint8)
    with pytest.raises(InputError, match="sub-07: no constraint map .*; run generate_constraint_maps.py first"):
        read_constraint_map(path, "sub-07", SHAPE, AFFINE, 20)
    write_nifti(path, classes, AFFINE)
    assert np.array_equal(read_constraint_map(path, "sub-07", SHAPE, AFFINE, 20), classes)
    with pytest.raises(InputError, match="classes from 0 to 18, expected 1 to 10; make it again"):
        read_constraint_map(path, "sub-07", SHAPE, AFFINE, 10)
    with pytest.raises(InputError, match="differ in origin"):
        read_constraint_map(path, "sub-07", SHAPE, np.eye(4), 20)
    write_nifti(path, classes / 20, AFFINE)
    with pytest.raises(InputError, match="holds float32 values, expected integers"):
        read_constraint_map(path, "sub-07", SHAPE, AFFINE, 20)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (label_map(), np.uint8),
        (label_map().astype(np.int64) - 3, np.int32),
        (label_map() > 0, np.uint8),
        (label_map() / 7, np.float32),
        (image(1, 2), np.int16),
    ],
)
def test_what_is_written_is_read_back(tmp_path, array, dtype):
    path = tmp_path / "new" / "map.nii.gz"
    write_nifti(path, array, AFFINE)
    written = nibabel.load(path)
    assert written.get_data_dtype() == dtype
    assert np.array_equal(np.asanyarray(written.dataobj), array.astype(dtype))
    for affine in (written.affine, written.get_qform()):
        assert affine == pytest.approx(AFFINE, abs=1e-5)
    assert written.header.get_xyzt_units()[0] == "mm"
    assert [entry.name for entry in path.parent.iterdir()] == ["map.nii.gz"]


def test_the_intent_of_a_label_map_changes_nothing_else(tmp_path):
    """NIfTI's intent code, bytes 68 and 69 of the header, is 1002 (NIFTI_INTENT_LABEL)."""
    paths, classes = [tmp_path / name for name in ("plain.nii", "label.nii")], (label_map() > 0).astype(np.uint8)
    for path, intent in zip(paths, ("none", "label"), strict=True):
        write_nifti(path, classes, AFFINE, intent=intent)
    plain, label = (path.read_bytes() for path in paths)
    assert int.from_bytes(label[68:70], "little") == 1002 and plain[68:70] == bytes(2)
    assert label[:68] + bytes(2) + label[70:] == plain
    assert nibabel.load(paths[1]).header.get_intent() == ("label", (), "")
    before, after = (read_label_map(path, "s", 1) for path in paths)
    assert np.array_equal(before.values, after.values) and np.array_equal(before.affine, after.affine)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("span", [(0, 1), (-3.5, 980.25), (18.401163886445, 18.566138736797292), (1e5, 1e5 + 30)])
def test_intensities_in_steps_are_right_within_half_a_step(tmp_path, span, dtype):
    low, high = span
    values = np.random.default_rng(0).uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), SHAPE)
    values[0, 0, :4] = [low, high, low - (high - low), high + 5 * (high - low)]
    values = values.astype(dtype)
    write_nifti(tmp_path / "t1.nii.gz", values, AFFINE, span=span)
    image = nibabel.load(tmp_path / "t1.nii.gz")
    assert image.get_data_dtype() == np.uint16 and image.header.get_xyzt_units()[0] == "mm"
    for affine in (image.affine, image.get_qform()):
        assert affine == pytest.approx(AFFINE, abs=1e-5)
    found, step = image.get_fdata(), (high - low) / 65535
    tolerance = 0.51 * step + 1e-7 * max(abs(low), high)  # slope and intercept are float32
    np.testing.assert_allclose(found, np.clip(values.astype(float), low, high), rtol=0, atol=tolerance)
    assert found[0, 0, :4] == pytest.approx([low, high, low, high], abs=tolerance)


def test_a_span_without_length_gives_its_one_value(tmp_path):
    write_nifti(tmp_path / "t1.nii.gz", np.linspace(0, 9, 210).reshape(SHAPE), AFFINE, span=(5, 5))
    assert (nibabel.load(tmp_path / "t1.nii.gz").get_fdata() == 5).all()


def test_a_span_keeps_the_header_of_the_scan(tmp_path):
    scan = nibabel.Nifti1Image(image(1), AFFINE)
    scan.set_sform(AFFINE, code="mni")
    scan.header.set_slope_inter(0.01, -3)
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    values = np.linspace(-2, 9, 210).reshape(SHAPE)
    write_nifti(tmp_path / "t1.nii.gz", values, AFFINE, header_of=tmp_path / "scan.nii.gz", span=(-2, 9))
    written = nibabel.load(tmp_path / "t1.nii.gz")
    assert int(written.header["sform_code"]) == 4 and written.get_data_dtype() == np.uint16
    np.testing.assert_allclose(written.get_fdata(), values, atol=11 / 65535)


def test_the_header_of_the_scan_is_kept_but_not_its_scaling(tmp_path):
    scan = nibabel.Nifti1Image(image(1), AFFINE)
    scan.set_sform(AFFINE, code="mni")
    scan.set_qform(AFFINE, code="aligned")
    scan.header.set_slope_inter(0.01, -3)
    scan.header["cal_max"] = 900
    scan.header.set_xyzt_units("micron")
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    write_nifti(tmp_path / "map.nii.gz", label_map(), scan.affine, header_of=tmp_path / "scan.nii.gz")
    written = nibabel.load(tmp_path / "map.nii.gz")
    assert np.array_equal(np.asanyarray(written.dataobj), label_map())
    assert written.get_data_dtype() == np.uint8
    assert written.header.get_xyzt_units()[0] == "micron"
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (4, 2)
    assert written.header["cal_max"] == 0
    assert written.affine == pytest.approx(AFFINE, abs=1e-5)


def test_integers_beyond_32_bits_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="integers beyond 32 bits"):
        write_nifti(tmp_path / "map.nii.gz", np.full(SHAPE, 2**40), AFFINE)
    assert not list(tmp_path.iterdir())
