"""predict.py with models of finetune_synthesis.py: the contrasts of step 4, in stated units."""

import csv
import json
import logging
import shutil

import nibabel
import numpy as np
import pytest
import yaml

import finetune_synthesis
import generate_h5_pretraining
import predict
from data.intensity import intensity_ranges
from data.scans.volumes import write_nifti
from models.unet import build_unet
from models.weights import save_weights
from utils.checks import InputError

SUBJECTS = {"train": ["sub-1"], "val": ["sub-2"], "test": ["sub-3", "sub-4"]}
SHAPE = (22, 19, 9)
STEP = 1 / 65_535
CROPS = {2: [16, 16], 3: [16, 16, 8]}


def write_subject(folder, number):
    """Write an ellipsoid of two tissues in air, one inside the mask; oblique grids, every other one flipped."""
    generator, affine = np.random.default_rng(number), np.diag([-2.0 if number % 2 else 2.0, 2.0, 4.0, 1.0])
    affine[0, 1], affine[:3, 3] = 0.1, (5, -7, 11)
    x, y, z = np.meshgrid(*(np.linspace(-1.1, 1.1, size) for size in SHAPE), indexing="ij")
    head = x**2 + y**2 + 0.3 * z**2 < 1
    tissue = head * np.where(x + 0.2 * number * y > 0, 1.0, 0.5)
    for name, slope in {"t1gd": 700, "flair": -300, "t1": 400, "t2": 90}.items():
        image = head * (500 + slope * tissue + generator.normal(0, 20, SHAPE))
        write_nifti(folder / f"sub-{number}" / f"{name}.nii.gz", image.astype(np.float32), affine)
    write_nifti(folder / f"sub-{number}" / "mask.nii.gz", tissue == 1, affine)


@pytest.fixture(scope="module", params=[(2, None), (3, "{subject}/mask.nii.gz")], ids=["slices", "volumes, mask"])
def cell(request, tmp_path_factory):
    """Return scans and a cell of step 4, from slices with detected foreground or from volumes with a mask."""
    rank, mask = request.param
    folder = tmp_path_factory.mktemp("synthesis")
    for number in range(1, 5):
        write_subject(folder / "scans", number)
    content = {
        "name": "tiny",
        "seed": 3,
        "work_dir": str(folder / "work"),
        "data": {
            "root": str(folder / "scans"),
            "contrasts": {name: f"{{subject}}/{name}.nii.gz" for name in ("t1", "t1gd", "t2", "flair")},
            "splits": SUBJECTS,
            "mask": mask,
        },
        "slices": {"image_size": [32, 32], "pixel_size": 1.7},
        "network": {"rank": rank, "filters": [4, 8]},
        "crops": {"size": CROPS[rank]},
        "synthesis": {
            "inputs": ["t1gd", "flair"],
            "targets": ["t1", "t2"],
            "inits": ["random"],
            "subjects_n": [1],
            "repeats": 1,
            "training": {"epochs": 2, "steps_per_epoch": 3, "batch_size": 2, "learning_rate": 0.01},
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    for step in (generate_h5_pretraining, finetune_synthesis):
        step.main(["--config", str(folder / "tiny.yaml")])
    return folder / "work/synthesis/random/n01/r0", folder / "scans"


def run(model, scans, output, *words):
    predict.main([*map(str, ("--model", model, "--input", scans, "--output", output, *words))])


def rows_of(folder):
    with (folder / "intensities.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len({(row["subject"], row["contrast"]) for row in rows}) == len(rows)
    return {(row["subject"], row["contrast"]): (row["unit"], float(row["low"]), float(row["high"])) for row in rows}


def test_a_test_subject_gets_what_it_got_in_step_4(cell, tmp_path):
    model, scans = cell
    run(model, scans, tmp_path / "out")
    scores = json.loads((model / "metrics.json").read_text())["per_subject"]
    rows = rows_of(tmp_path / "out")
    assert len(scores) == 4 and len(rows) == 8
    for score in scores:
        subject, target = score["subject"], score["label"]
        low, high = score["intensity_low"], score["intensity_high"]
        assert rows[subject, target] == ("acquired", low, high)
        made = nibabel.load(tmp_path / "out" / f"{subject}_{target}.nii.gz")
        expected = nibabel.load(model / "predictions" / f"{subject}_{target}.nii.gz")
        np.testing.assert_array_equal(made.affine, expected.affine)
        assert made.shape == expected.shape == SHAPE and made.get_data_dtype() == np.uint16
        difference = np.abs(made.get_fdata() - expected.get_fdata())
        assert np.ptp(expected.get_fdata()) > 0.05 * (high - low)  # otherwise any constant would pass
        assert difference.max() <= 1.01 * STEP * (high - low)


def test_without_the_acquired_contrast_intensities_stay_from_0_to_1(cell, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mrccl"), "propagate", True)
    model, scans = cell
    for subject in ("sub-3", "sub-4"):
        shutil.copytree(scans / subject, tmp_path / "new" / subject)
    (tmp_path / "new/sub-3/t1.nii.gz").unlink()  # the other targets of the model do not change
    with caplog.at_level(logging.INFO, "mrccl"):
        run(model, tmp_path / "new", tmp_path / "out")
    assert "wrote 4 synthesised contrasts" in caplog.text and "3 acquired, 1 scaled 0 to 1" in caplog.text
    units = {key: unit for key, (unit, *_) in rows_of(tmp_path / "out").items()}
    assert units.pop(("sub-3", "t1")) == "scaled 0 to 1" and set(units.values()) == {"acquired"}
    assert rows_of(tmp_path / "out")["sub-3", "t1"][1:] == (0, 1)
    scaled = nibabel.load(tmp_path / "out/sub-3_t1.nii.gz").get_fdata()
    real = nibabel.load(model / "predictions/sub-3_t1.nii.gz").get_fdata()
    scores = json.loads((model / "metrics.json").read_text())["per_subject"]
    low, high = next(
        (row["intensity_low"], row["intensity_high"])
        for row in scores
        if (row["subject"], row["label"]) == ("sub-3", "t1")
    )
    assert scaled.min() >= 0 and scaled.max() <= 1
    np.testing.assert_allclose(low + scaled * (high - low), real, atol=2.02 * STEP * (high - low))


def test_the_acquired_contrast_gives_its_unit_and_nothing_else(cell, tmp_path):
    """Another scanner gain in the acquired target scales the result without changing its pattern."""
    model, scans = cell
    shutil.copytree(scans / "sub-3", tmp_path / "new" / "sub-3")
    acquired = nibabel.load(scans / "sub-3" / "t2.nii.gz")
    write_nifti(tmp_path / "new/sub-3/t2.nii.gz", (3 * acquired.get_fdata()).astype(np.float32), acquired.affine)
    run(model, tmp_path / "new", tmp_path / "out")
    made, expected = (
        nibabel.load(path).get_fdata()
        for path in (tmp_path / "out/sub-3_t2.nii.gz", model / "predictions/sub-3_t2.nii.gz")
    )
    np.testing.assert_allclose(made, 3 * expected, rtol=1e-4, atol=4 * STEP * made.max())
    description = json.loads((model / "model.json").read_text())
    mask = nibabel.load(scans / "sub-3/mask.nii.gz").get_fdata() > 0 if description["mask"] else None
    low, high = 3 * intensity_ranges(np.asarray(acquired.dataobj, np.float32)[..., None], mask)[0]
    assert rows_of(tmp_path / "out")["sub-3", "t2"] == ("acquired", pytest.approx(low), pytest.approx(high))


def test_what_exists_is_kept_and_so_are_its_rows(cell, tmp_path):
    model, scans = cell
    shutil.copytree(scans / "sub-3", tmp_path / "new" / "sub-3")
    first, second = tmp_path / "out/sub-3_t1.nii.gz", tmp_path / "out/sub-3_t2.nii.gz"
    run(model, tmp_path / "new", tmp_path / "out")
    before, rows, made = first.stat().st_mtime_ns, rows_of(tmp_path / "out"), second.read_bytes()
    second.unlink()
    (tmp_path / "new/sub-3/t1.nii.gz").unlink()
    run(model, tmp_path / "new", tmp_path / "out")
    assert first.stat().st_mtime_ns == before and second.read_bytes() == made
    assert rows_of(tmp_path / "out") == rows
    (tmp_path / "new/sub-3/t2.nii.gz").unlink()
    run(model, tmp_path / "new", tmp_path / "out", "--overwrite")
    assert first.stat().st_mtime_ns > before and second.read_bytes() != made
    assert {unit for unit, *_ in rows_of(tmp_path / "out").values()} == {"scaled 0 to 1"}


def test_a_scan_that_cannot_be_used_is_named(cell, tmp_path):
    model, scans = cell
    for subject in ("sub-3", "sub-4"):
        shutil.copytree(scans / subject, tmp_path / "new" / subject)
    (tmp_path / "new/sub-3/flair.nii.gz").unlink()
    with pytest.raises(InputError, match=r"sub-3: contrast 'flair' is missing: no file '.*sub-3/flair.nii.gz'; add it"):
        run(model, tmp_path / "new", tmp_path / "out")
    shutil.copy(scans / "sub-3/flair.nii.gz", tmp_path / "new/sub-3/flair.nii.gz")
    image = nibabel.load(scans / "sub-4/t1.nii.gz")
    write_nifti(tmp_path / "new/sub-4/t1.nii.gz", np.asarray(image.dataobj)[:-1], image.affine)
    with pytest.raises(InputError, match=r"sub-4: '.*t1.nii.gz' is \(21, 19, 9\) but .* must share one grid"):
        run(model, tmp_path / "new", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_that_do_not_fit_are_refused(cell, tmp_path):
    model, scans = cell
    (tmp_path / "notes.txt").write_text("")
    for output in (tmp_path / "t1.nii.gz", tmp_path / "notes.txt"):
        with pytest.raises(InputError, match=r"for a folder of scans give a folder"):
            run(model, scans, output)
    with pytest.raises(InputError, match=r"the model needs t1gd, flair.*; give a folder that holds all of them"):
        run(model, scans / "sub-3/t1gd.nii.gz", tmp_path / "t1.nii.gz")


def write_model(folder, **changes):
    """Write a model folder with untrained weights that synthesises T1 from FLAIR."""
    model = {
        "name": "small",
        "contrasts": ["flair"],
        "targets": ["t1"],
        "files": {"flair": "{subject}_flair.nii.gz", "t1": "{subject}_t1.nii.gz"},
        "mask": None,
        "percentiles": [1, 99],
        "slices": {"image_size": [24, 24], "pixel_size": None},
        "crop_size": [16, 16],
        "overlap": 0.5,
        "filters": [4, 8],
    } | changes
    shape = (*model["crop_size"], len(model["contrasts"]))
    network = build_unet(shape, filters=model["filters"], head="synthesis", outputs=len(model["targets"]))
    save_weights(network, folder / "weights.npz")
    (folder / "model.json").write_text(json.dumps({key: value for key, value in model.items() if value != "left out"}))
    return folder


@pytest.fixture
def flat(tmp_path):
    """Return a folder with all scans side by side, and their subject."""
    write_subject(tmp_path / "all", 1)
    scans = tmp_path / "flat"
    scans.mkdir()
    for name in ("flair", "t1"):
        shutil.copy(tmp_path / f"all/sub-1/{name}.nii.gz", scans / f"sub-1_{name}.nii.gz")
    (tmp_path / "model").mkdir()
    return scans


def test_one_scan_to_one_contrast(flat, tmp_path):
    model = write_model(tmp_path / "model")
    run(model, flat / "sub-1_flair.nii.gz", tmp_path / "made.nii.gz")
    made = nibabel.load(tmp_path / "made.nii.gz")
    assert made.shape == SHAPE and 0 <= made.get_fdata().min() <= made.get_fdata().max() <= 1
    assert rows_of(tmp_path) == {("made", "t1"): ("scaled 0 to 1", 0, 1)}
    with pytest.raises(InputError, match=r"is the scan itself"):
        run(model, flat / "sub-1_flair.nii.gz", flat / "sub-1_flair.nii.gz", "--overwrite")
    with pytest.raises(InputError, match=r"for one scan give a file that ends in .nii"):
        run(model, flat / "sub-1_flair.nii.gz", tmp_path / "folder")
    both = write_model(tmp_path / "model", targets=["t1", "t2"])
    with pytest.raises(InputError, match=r"the model makes t1, t2; give a folder"):
        run(both, flat / "sub-1_flair.nii.gz", tmp_path / "other.nii.gz")


def test_acquired_contrasts_are_neither_replaced_nor_imitated(flat, tmp_path):
    model, before = write_model(tmp_path / "model"), (flat / "sub-1_t1.nii.gz").read_bytes()
    with pytest.raises(InputError, match=r"scans are read under names such as .*sub-1_t1.nii.gz; give another folder"):
        run(model, flat, flat, "--overwrite")
    assert (flat / "sub-1_t1.nii.gz").read_bytes() == before
    (flat / "sub-1_t1.nii.gz").unlink()
    with pytest.raises(InputError, match=r"give another folder"):
        run(model, flat, flat)
    run(model, flat, flat / "synthesised")  # none of its names match those of scans
    assert (flat / "synthesised" / "sub-1_t1.nii.gz").exists()


def test_a_model_that_says_too_little_is_refused(flat, tmp_path):
    model = write_model(tmp_path / "model", overlap="left out", percentiles="left out")
    with pytest.raises(InputError, match=r"model.json: lacks overlap, percentiles; run the cell again"):
        run(model, flat, tmp_path / "out")


def test_mirror_images_count_and_segmentation_options_are_refused(flat, tmp_path):
    model = write_model(tmp_path / "model")
    run(model, flat / "sub-1_flair.nii.gz", tmp_path / "plain.nii.gz")
    run(model, flat / "sub-1_flair.nii.gz", tmp_path / "mirrored.nii.gz", "--flip", "left_right", "anterior_posterior")
    plain, mirrored = (nibabel.load(tmp_path / name).get_fdata() for name in ("plain.nii.gz", "mirrored.nii.gz"))
    assert np.abs(plain - mirrored).max() > 0.01
    for words in (["--probabilities"], ["--largest-component"], ["--min-component-ml", "1"]):
        with pytest.raises(InputError, match=rf"{words[0]}: is for segmentations; this model synthesises contrasts"):
            run(model, flat, tmp_path / "out", *words)
