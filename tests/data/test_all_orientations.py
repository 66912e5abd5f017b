"""Left stays left: kidneys of different sizes are read, packed, predicted and written in every orientation.

Each of the 48 ways to store three axes (their order and directions) is written to a file, once upright and once
oblique; the result must lie on the same voxels of that file, and on the same side of the patient.
"""

import dataclasses
import itertools

import nibabel
import numpy as np
import pytest
import yaml
from nibabel import orientations

from data.layouts.subjects import SubjectFiles
from data.store.store import SliceStore
from evaluation.prediction.inference import label_map, predict_slices
from evaluation.prediction.new_scans import segment
from generate_h5_pretraining import prepare_subject
from tests.readers import read_contrasts, read_label
from tests.stores import write_store
from utils.config.load import load_config
from utils.model_description import SegmentationModel

CODES = [
    "".join(axis[end] for axis, end in zip(axes, ends, strict=True))
    for axes in itertools.permutations(["LR", "PA", "IS"])
    for ends in itertools.product([0, 1], repeat=3)
]
SHAPE, SPACING = (13, 9, 6), (2.0, 3.0, 5.0)
LEFT, RIGHT = 1, 2
LABELS = {"left_kidney": [3], "right_kidney": [7]}
ON_DISK = np.array([0, 3, 7])
OBLIQUE = nibabel.eulerangles.euler2mat(z=0.25, y=-0.2, x=0.15)
CONTRASTS = {name: f"{{subject}}/{name}.nii.gz" for name in ("left", "right")}


def kidneys():
    """Return class indices with axes RAS: the first axis points to the patient's right, so the left kidney is first."""
    classes = np.zeros(SHAPE, np.uint8)
    classes[1:4, 2:7, 1:5] = LEFT
    classes[9:12, 3:6, 2:5] = RIGHT
    classes[2, 3, 5] = LEFT  # breaks all mirror symmetries
    return classes


def affine_of(rotation):
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(SPACING)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2  # the origin is in the middle of the patient
    return affine


def write_scan(folder, code, affine):
    """Write contrasts, label and mask with the axes of an orientation code; returns `SubjectFiles`."""
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code))
    classes, stored = kidneys(), affine @ orientations.inv_ornt_aff(turn, SHAPE)
    arrays = {"label": ON_DISK[classes].astype(np.uint8), "mask": np.ones_like(classes)}
    arrays |= {name: 100 * (classes == index).astype(np.int16) for index, name in enumerate(CONTRASTS, start=1)}
    for name, array in arrays.items():
        image = nibabel.Nifti1Image(orientations.apply_orientation(array, turn), stored)
        nibabel.save(image, folder / f"{name}.nii.gz")
    contrasts = {name: folder / f"{name}.nii.gz" for name in CONTRASTS}
    return SubjectFiles("sub-1", contrasts, folder / "label.nii.gz", folder / "mask.nii.gz")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    data = {"root": str(folder), "contrasts": CONTRASTS, "label": "{subject}/label.nii.gz", "labels": LABELS}
    data |= {"mask": "{subject}/mask.nii.gz", "splits": {"folds": 2, "validation": 1}}
    slices = {"image_size": [16, 16], "percentiles": [0, 100]}
    content = {"name": "tiny", "work_dir": str(folder), "data": data, "slices": slices, "network": {"filters": [2, 4]}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return load_config(folder / "tiny.yaml")


class Seer:
    """Stands in for a network: the left kidney is in the first contrast, the right one in the second."""

    def predict_on_batch(self, images):
        scores = np.concatenate([np.full_like(images[..., :1], 0.5), images], axis=-1)
        return np.eye(3, dtype=np.float32)[scores.argmax(axis=-1)]


def sides(path):
    """Return the mean left-to-right world coordinate of the labels called left and right."""
    image = nibabel.load(path)
    classes = np.asarray(image.dataobj)
    return [
        nibabel.affines.apply_affine(image.affine, np.argwhere(classes == value))[:, 0].mean()
        for value in (LEFT, RIGHT)
    ]


def model_with(**slices):
    numbers = {"left_kidney": 1, "right_kidney": 2}
    keys = {"contrasts": list(CONTRASTS), "files": CONTRASTS, "percentiles": (0, 100), "mask": None, "filters": [2, 4]}
    return SegmentationModel(**keys, slices=slices, labels=numbers, voxel_size_known=True)


@pytest.mark.parametrize("rotation", [np.eye(3), OBLIQUE], ids=["upright", "oblique"])
@pytest.mark.parametrize("code", CODES)
def test_left_stays_left_and_every_voxel_where_it_was(code, rotation, config, tmp_path):
    files = write_scan(tmp_path, code, affine_of(rotation))
    stored = np.asarray(nibabel.load(files.label).dataobj)
    if np.array_equal(rotation, np.eye(3)):
        assert "".join(nibabel.aff2axcodes(nibabel.load(files.label).affine)) == code

    classes = read_label(files, LABELS)
    np.testing.assert_array_equal(ON_DISK[classes], stored)
    volume, affine = read_contrasts(files, list(CONTRASTS), CONTRASTS)
    np.testing.assert_array_equal(volume, 100 * np.stack([classes == LEFT, classes == RIGHT], axis=-1))

    packed = prepare_subject(config, files).slices
    expected = np.zeros((SHAPE[2], 16, 16), np.uint8)  # rows to posterior, columns to the patient's left, padded
    expected[:, 4:13, 2:15] = kidneys()[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(packed.labels, expected)
    np.testing.assert_array_equal(packed.images, np.stack([expected == LEFT, expected == RIGHT], axis=-1))

    write_store(
        tmp_path / "a.h5",
        [dataclasses.replace(packed, constraint_maps={None: packed.labels})],
        contrasts=list(CONTRASTS),
        image_size=(16, 16),
        attributes={"clusters": 2, "labels": list(LABELS)},
    )
    store = SliceStore(tmp_path / "a.h5")
    grid = store.grid("sub-1")
    np.testing.assert_array_equal(grid.to_volume(store.labels(), order=0), classes)
    np.testing.assert_array_equal(label_map(predict_slices(Seer(), store.images(), 4), grid), classes)

    segment(Seer(), model_with(image_size=(16, 16), pixel_size=None), files, {"label": tmp_path / "predicted.nii.gz"})
    predicted = nibabel.load(tmp_path / "predicted.nii.gz")
    np.testing.assert_array_equal(np.asarray(predicted.dataobj), classes)
    np.testing.assert_allclose(predicted.affine, affine, atol=1e-5)
    left, right = sides(tmp_path / "predicted.nii.gz")
    assert left < -5 and right > 5


@pytest.mark.parametrize("code", CODES)
def test_left_stays_left_when_pixels_are_resampled(code, config, tmp_path):
    files = write_scan(tmp_path, code, affine_of(OBLIQUE))
    segment(Seer(), model_with(image_size=(24, 24), pixel_size=1.3), files, {"label": tmp_path / "predicted.nii.gz"})
    found, classes = np.asarray(nibabel.load(tmp_path / "predicted.nii.gz").dataobj), read_label(files, LABELS)
    left, right = sides(tmp_path / "predicted.nii.gz")
    assert left < -5 and right > 5
    for value in (LEFT, RIGHT):
        both = 2 * ((found == value) & (classes == value)).sum() / ((found == value).sum() + (classes == value).sum())
        assert both > 0.7
    assert not ((found == LEFT) & (classes == RIGHT)).any() and not ((found == RIGHT) & (classes == LEFT)).any()


def test_there_are_48_orientations():
    assert len(set(CODES)) == 48
