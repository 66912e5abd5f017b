"""From scans to label maps through every format of the suite: voxels keep their place, and left stays left.

Kidneys of different sizes are in oblique, anisotropic scans with different axis orders. A stand-in for the network sees
the left one in the first contrast and the right one in the second, so steps 1, 2 and 4 and predict.py must write the
label, voxel by voxel.
"""

import nibabel
import numpy as np
import pytest
import yaml
from nibabel import orientations

from tests.bad_input.harness import run
from training.cells import Cell
from utils.config.load import load_config

SHAPE, SPACING = (13, 9, 6), (2.0, 3.0, 5.0)
LEFT, RIGHT = 1, 2
VALUES = {"left_kidney": 3, "right_kidney": 7}
PLACED = {"sub-1": ("RAS", 0.0), "sub-2": ("PIR", 0.2), "sub-3": ("LAS", -0.15), "sub-4": ("SLA", 0.25)}
TEST = ["sub-3", "sub-4"]


def kidneys(number):
    """Return class indices with axes RAS: the first axis points to the patient's right, so the left kidney is first."""
    classes = np.zeros(SHAPE, np.uint8)
    classes[1:4, 2:7, 1:5] = LEFT
    classes[9:12, 3:6, 2:5] = RIGHT
    classes[2, 3, 5] = LEFT  # breaks all mirror symmetries
    classes[3, 2 + number, 0], classes[9, 2 + number, 0] = LEFT, RIGHT  # and differs between subjects
    return classes


def write_scan(folder, number, code, angle):
    rotation = nibabel.eulerangles.euler2mat(z=angle, y=-angle, x=angle / 2)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(SPACING)
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2  # the origin is in the middle of the patient
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code))
    affine, classes = (
        affine @ orientations.inv_ornt_aff(turn, SHAPE),
        orientations.apply_orientation(kidneys(number), turn),
    )
    arrays = {"label": np.array([0, *VALUES.values()], np.uint8)[classes], "mask": np.ones_like(classes)}
    arrays |= {name: 100 * (classes == number).astype(np.int16) for number, name in ((LEFT, "one"), (RIGHT, "two"))}
    folder.mkdir(parents=True)
    for name, array in arrays.items():
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Return the path of the config, after steps 1 and 2."""
    folder = tmp_path_factory.mktemp("geometry")
    for number, (subject, (code, angle)) in enumerate(PLACED.items()):
        write_scan(folder / "data" / subject, number, code, angle)
    data = {
        "root": str(folder / "data"),
        "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in ("one", "two")},
        "label": "{subject}/label.nii.gz",
        "labels": {name: [value] for name, value in VALUES.items()},
        "mask": "{subject}/mask.nii.gz",
        "splits": {"train": ["sub-1"], "val": ["sub-2"], "test": TEST},
    }
    training = {"epochs": 1, "batch_size": 2, "learning_rate": 0.001}
    content = {
        "name": "tiny",
        "work_dir": str(folder / "work"),
        "data": data,
        "constraint_maps": {"contrasts": ["one", "two"], "clusters": 3, "percentiles": [0, 100], "tv_weight": 1e6},
        "slices": {"image_size": [16, 16], "min_foreground": 0},
        "network": {"filters": [2, 4]},
        "finetuning": {
            "contrasts": {"both": ["one", "two"]},
            "inits": ["random"],
            "subjects_n": [1],
            "training": training,
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    for step in ("generate_constraint_maps", "generate_h5_pretraining"):
        outcome = run(step, "--config", path)
        assert outcome.code == 0, outcome.said
    return path


class Seer:
    """Stands in for a network: the left kidney is in the first contrast, the right one in the second."""

    def predict_on_batch(self, images):
        scores = np.concatenate([np.full_like(images[..., :1], 0.5), images], axis=-1)
        return np.eye(3, dtype=np.float32)[scores.argmax(axis=-1)]


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def classes_of(config, subject):
    """Return the label of a subject as class indices."""
    label = voxels(config.parent / "data" / subject / "label.nii.gz")
    return np.select([label == value for value in VALUES.values()], (LEFT, RIGHT), 0)


def assert_is_the_label(path, config, subject):
    """Check that a file has the grid of the scan and the values of the label; left is on the patient's left."""
    image, scan = nibabel.load(path), nibabel.load(config.parent / "data" / subject / "one.nii.gz")
    np.testing.assert_allclose(image.affine, scan.affine, atol=1e-5)
    assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(scan.affine)
    np.testing.assert_array_equal(voxels(path), classes_of(config, subject))
    for value, side in ((LEFT, -1), (RIGHT, 1)):
        centre = nibabel.affines.apply_affine(image.affine, np.argwhere(voxels(path) == value)).mean(axis=0)
        assert np.sign(centre[0]) == side


def test_the_scans_are_oblique_anisotropic_and_stored_in_different_ways(packed):
    affines = [nibabel.load(packed.parent / "data" / subject / "one.nii.gz").affine for subject in PLACED]
    assert len({nibabel.aff2axcodes(affine) for affine in affines}) == len(PLACED)
    assert sum(np.count_nonzero(np.abs(affine[:3, :3]) > 1e-6) == 9 for affine in affines) == 3
    assert all(sorted(np.linalg.norm(affine[:3, :3], axis=0).round(3)) == list(SPACING) for affine in affines)


@pytest.mark.parametrize("subject", PLACED)
def test_constraint_maps_lie_on_the_voxels_of_the_scans(subject, packed):
    path = packed.parent / "work" / "constraint_maps" / f"{subject}.nii.gz"
    scan = nibabel.load(packed.parent / "data" / subject / "one.nii.gz")
    np.testing.assert_allclose(nibabel.load(path).affine, scan.affine, atol=1e-5)
    found, classes = voxels(path), classes_of(packed, subject)
    pairs = set(zip(found.ravel().tolist(), classes.ravel().tolist(), strict=True))
    assert len(pairs) == len({one for one, _ in pairs}) == 3  # classes of map and label correspond


@pytest.mark.parametrize("subject", PLACED)
def test_packed_slices_return_to_their_voxels(subject, packed):
    from data.store.store import SliceStore

    store = SliceStore(packed.parent / "work" / "h5" / "annotated.h5")
    rows, grid = store.rows_of([subject]), store.grid(subject)
    np.testing.assert_array_equal(grid.to_volume(store.labels(rows), order=0), classes_of(packed, subject))
    on_disk = voxels(packed.parent / "work" / "constraint_maps" / f"{subject}.nii.gz")
    np.testing.assert_array_equal(grid.to_volume(store.constraint_maps(rows), order=0), on_disk)


def test_step_4_scores_and_writes_the_very_label(packed, tmp_path):
    from data.layouts.subjects import find_subjects
    from data.splits import make_splits
    from finetune_segmentation import Segmentations

    config = load_config(packed)
    files = find_subjects(config.data.wanted())
    (split,) = make_splits(config.plain()["data"]["splits"], config.data.root, files, config.seed)
    rows = Segmentations(config, split, files).score(Seer(), Cell("random", 1, 0, "both"), tmp_path)
    assert [(row["subject"], row["label"]) for row in rows] == [(s, label) for s in TEST for label in VALUES]
    assert all(row["dice"] == 1 and row["hd95_mm"] == 0 for row in rows)
    sizes = {
        name: np.sum(kidneys(0) == number) * np.prod(SPACING) / 1000 for number, name in enumerate(VALUES, start=1)
    }
    assert all(row["volume_ml"] == pytest.approx(sizes[row["label"]]) for row in rows)
    for subject in TEST:
        assert_is_the_label(tmp_path / f"{subject}.nii.gz", packed, subject)


def test_predict_writes_the_very_label(packed, tmp_path, monkeypatch):
    from models import portable
    from utils.runs import write_json

    config = load_config(packed)
    plain = config.plain()
    model = {"contrasts": ["one", "two"], "files": plain["data"]["contrasts"], "filters": [2, 4]}
    model |= {"labels": {name: number for number, name in enumerate(VALUES, start=1)}, "voxel_size_known": True}
    model |= {"mask": plain["data"]["mask"], "percentiles": [0, 100], "slices": plain["slices"]}
    write_json(tmp_path / "model" / "model.json", model)
    (tmp_path / "model" / "weights.npz").write_bytes(b"of the stand-in")
    monkeypatch.setattr(portable, "load_network", lambda folder, model: Seer())
    words = ["--model", tmp_path / "model", "--input", packed.parent / "data", "--output", tmp_path / "out"]
    outcome = run("predict", *words)
    assert outcome.code == 0, outcome.said
    for subject in PLACED:
        assert_is_the_label(tmp_path / "out" / f"{subject}.nii.gz", packed, subject)
