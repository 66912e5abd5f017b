"""A `SubjectReader` determines the grid once, and knows headers and hashes of the files it has read."""

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from data.layouts.subjects import SubjectFiles
from data.scans.scan import hash_of_file
from data.scans.subject import SubjectReader
from tests.layouts import AFFINE, SHAPE, corner, ramp, save
from utils.checks import InputError
from utils.config.data import Wanted

WANTED = Wanted(Path(), {"t1": "", "t2": "", "plain": ""}, labels={"a": [1], "b": [2]})


@pytest.fixture
def files(tmp_path):
    names = {"t1": "t1.nii.gz", "t2": "t2.nii.gz", "plain": "plain.nii"}
    paths = {name: save(tmp_path / file, ramp(seed)) for seed, (name, file) in enumerate(names.items())}
    label, mask = (save(tmp_path / f"{name}.nii.gz", corner([1, 2])) for name in ("label", "mask"))
    mask = save(tmp_path / "mask.nii.gz", (corner([1, 1]) > 0).astype(np.uint8))
    return SubjectFiles("sub-1", paths, label, mask)


def digest_by_hand(path):
    inner = hashlib.blake2b(path.read_bytes()).digest()
    return hashlib.blake2b(inner, digest_size=8).hexdigest()


def test_the_note_is_of_the_bytes_that_were_read(files):
    before = {name: digest_by_hand(path) for name, path in files.contrasts.items()}
    reader = SubjectReader(files, WANTED)
    assert reader.problems() == [] and reader.note(["t2"]) == f"t2={before['t2']} mask={digest_by_hand(files.mask)}"
    assert reader.note_of_all().split()[-1] == f"label={digest_by_hand(files.label)}"
    assert (
        SubjectReader(files, WANTED).note()
        == reader.note()
        == " ".join([*(f"{name}={digest}" for name, digest in before.items()), f"mask={digest_by_hand(files.mask)}"])
    )
    save(files.contrasts["t1"], ramp(9))  # meanwhile
    assert reader.digest(files.contrasts["t1"]) == before["t1"] != hash_of_file(files.contrasts["t1"])
    reader.volume(["t1"])
    assert reader.digest(files.contrasts["t1"]) == hash_of_file(files.contrasts["t1"])


def test_what_is_kept_is_what_is_read(files):
    plain, keeping = SubjectReader(files, WANTED), SubjectReader(files, WANTED, keeps=True)
    expected = np.stack([ramp(1), ramp(0)], -1)
    for reader in (plain, keeping, keeping):
        np.testing.assert_array_equal(reader.volume(["t2", "t1"]), expected)
        np.testing.assert_array_equal(reader.mask(), corner([1, 1]) > 0)
    for path in (files.contrasts["t1"], files.mask):
        path.unlink()
    np.testing.assert_array_equal(keeping.volume(["t1"])[..., 0], ramp(0))
    assert keeping.mask().sum() == (corner([1, 1]) > 0).sum()
    with pytest.raises(InputError, match="t1.nii.gz' does not exist"):
        plain.volume(["t1"])
    with pytest.raises(InputError, match="mask.nii.gz' does not exist"):
        plain.mask()


def test_the_grid_is_that_of_the_first_contrast_read_or_of_its_header(files):
    other = AFFINE.copy()
    other[0, 3] += 5e-4  # within the tolerance
    save(files.contrasts["t2"], ramp(1), other)
    for names in (["t1", "t2"], ["t2", "t1"]):
        read, unread = SubjectReader(files, WANTED, names), SubjectReader(files, WANTED, names)
        read.volume()
        expected = nibabel.load(files.contrasts[names[0]]).affine
        for reader in (read, unread):
            assert reader.grid.shape == SHAPE and np.array_equal(reader.grid.affine, expected)
    fixed = SubjectReader(files, WANTED, grid=unread.grid)
    fixed.volume(["t1"])
    assert fixed.grid is unread.grid


def test_the_header_is_that_on_disk(files):
    reader, path = SubjectReader(files, WANTED), files.contrasts["t1"]
    assert reader.header(path) is None
    reader.volume(["t1"])
    assert reader.header(path) == nibabel.load(path).header and reader.header(files.contrasts["t2"]) is None


def test_a_reference_grid_that_cannot_be_read_is_one_line(files):
    files.contrasts["t2"].write_bytes(b"no scan")
    resampled = SubjectFiles("sub-1", files.contrasts, resample_to="t2")
    [line] = SubjectReader(resampled, WANTED).problems()
    assert "t2.nii.gz' is not a gzip file" in line
    [line] = SubjectReader(resampled, WANTED, ["t1"]).problems()
    assert "t2.nii.gz' cannot be read" in line
    with pytest.raises(InputError, match="t2.nii.gz' cannot be read"):
        SubjectReader(resampled, WANTED).volume()
