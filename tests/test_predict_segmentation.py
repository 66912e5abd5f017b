"""predict.py with several models, mirrored images, probabilities and clean-up."""

import csv
import functools
import json

import nibabel
import numpy as np
import pytest

import predict
from data.scans.volumes import write_nifti
from evaluation.prediction.postprocessing import keep_components
from models.unet import build_unet
from models.weights import save_weights
from utils.checks import InputError

SHAPE = (20, 18, 5)  # even in-plane sizes, so that a mirrored scan gives mirrored slices
AFFINE = np.diag([2.0, -2.0, 4.0, 1.0])  # 0.016 mL per voxel
VOXEL_ML = 0.016
MODEL = {
    "name": "small",
    "contrasts": ["t1"],
    "files": {"t1": "{subject}/t1.nii.gz", "t2": "{subject}/t2.nii.gz"},
    "mask": None,
    "labels": {"kidney": 1, "liver": 2},
    "voxel_size_known": True,
    "percentiles": [1, 99],
    "slices": {"image_size": [24, 24], "pixel_size": None, "min_foreground": 0.1},
    "filters": [4, 8],
}
pytestmark = pytest.mark.usefixtures("uncompiled")
build = functools.cache(build_unet)  # once per seed and shape; may be saved, but not changed


def write_model(folder, seed=0, **changes):
    model = MODEL | changes
    folder.mkdir()
    shape = (*model["slices"]["image_size"], len(model["contrasts"]))
    network = build(shape, filters=tuple(model["filters"]), outputs=len(model["labels"]) + 1, seed=seed)
    save_weights(network, folder / "weights.npz")
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def write_scan(path, seed=0, flip=()):
    """Write blobs in air, mirrored along some axes on disk."""
    generator = np.random.default_rng(seed)
    volume = np.kron(generator.random((5, 6, 5)), np.ones((4, 3, 1))).astype(np.float32)
    volume[:2] = volume[-2:] = volume[:, :2] = volume[:, -2:] = 0
    write_nifti(path, np.flip(volume, flip), AFFINE)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return two untrained model folders whose probabilities differ at every voxel."""
    folder = tmp_path_factory.mktemp("models")
    return [write_model(folder / str(seed), seed) for seed in (1, 2)]


@pytest.fixture
def scans(tmp_path):
    for number in (1, 2):
        write_scan(tmp_path / f"scans/sub-{number}/t1.nii.gz", number)
    return tmp_path / "scans"


def run(models, scans, output, *words):
    predict.main([*map(str, ("--model", *models, "--input", scans, "--output", output, *words))])
    return output


def read(path):
    return nibabel.load(path).get_fdata()


def test_several_models_give_the_class_that_is_most_probable_on_average(models, scans, tmp_path):
    alone = [run([model], scans, tmp_path / model.name, "--probabilities") for model in models]
    together = run(models, scans, tmp_path / "both", "--probabilities")
    for subject in ("sub-1", "sub-2"):
        expected = np.mean([read(folder / f"{subject}_probabilities.nii.gz") for folder in alone], axis=0)
        found = read(together / f"{subject}_probabilities.nii.gz")
        assert found.shape == (*SHAPE, 3)
        np.testing.assert_allclose(found, expected, atol=2e-5)
        np.testing.assert_allclose(found.sum(-1), 1, atol=3e-5)
        labels, best = read(together / f"{subject}.nii.gz"), np.sort(expected, axis=-1)
        is_clear = best[..., -1] - best[..., -2] > 1e-4
        assert is_clear.mean() > 0.9
        np.testing.assert_array_equal(labels[is_clear], expected.argmax(-1)[is_clear])
    assert any(np.any(read(folder / "sub-1.nii.gz") != read(together / "sub-1.nii.gz")) for folder in alone)


@pytest.mark.parametrize(("name", "axis"), [("left_right", 0), ("anterior_posterior", 1)])
def test_with_a_flip_the_mirrored_patient_gets_the_mirrored_result(models, tmp_path, name, axis):
    """By AFFINE, the first axis on disk runs from left to right and the second from back to front."""
    write_scan(tmp_path / "as it is/sub-1/t1.nii.gz")
    write_scan(tmp_path / "mirrored/sub-1/t1.nii.gz", flip=axis)
    probabilities = {}
    for words in ((), ("--flip", name)):
        found = []
        for case in ("as it is", "mirrored"):
            folder = run(models[:1], tmp_path / case, tmp_path / f"{case} {len(words)}", "--probabilities", *words)
            found.append(read(folder / "sub-1_probabilities.nii.gz"))
        probabilities[words] = np.abs(found[0] - np.flip(found[1], axis)).max()
    assert probabilities["--flip", name] < 1e-4 < 1e-2 < probabilities[()]


def test_sides_are_not_mirrored(models, scans, tmp_path):
    for number, labels in enumerate(({"left_kidney": 1, "liver": 2}, {"liver": 1, "lung-R": 2})):
        model = write_model(tmp_path / f"sided{number}", labels=labels)
        with pytest.raises(InputError, match=r"--flip left_right: the model tells left from right \((left|lung)"):
            run([model], scans, tmp_path / "out", "--flip", "left_right")
        run([model], scans, tmp_path / f"out{number}", "--flip", "anterior_posterior")
    harmless = write_model(tmp_path / "harmless", labels={"cleft": 1, "lesion": 2})
    run([harmless], scans, tmp_path / "out2", "--flip", "left_right")


@pytest.mark.parametrize("name", ["left_kidney", "kidney_left", "LeftKidney", "kidneyRight", "lung-R", "l", "KidneyL"])
def test_names_with_a_side(name):
    assert predict.SIDED.search(name)


@pytest.mark.parametrize("name", ["cleft", "liver", "lesion", "cortex", "bright_spot", "Liver", "tumor", "caudateLobe"])
def test_names_without_a_side(name):
    assert not predict.SIDED.search(name)


def test_components_are_removed_from_the_label_map_and_its_volumes_only(models, scans, tmp_path):
    raw = run(models, scans, tmp_path / "raw", "--probabilities")
    before = read(raw / "sub-1.nii.gz").astype(int)
    clean = {
        ("--largest-component",): lambda classes: keep_components(classes, [1, 2], largest=True),
        ("--largest-component", "liver"): lambda classes: keep_components(classes, [2], largest=True),
        ("--min-component-ml", str(3 * VOXEL_ML)): lambda classes: keep_components(classes, [1, 2], min_voxels=3),
    }
    for number, (words, expected) in enumerate(clean.items()):
        folder = run(models, scans, tmp_path / str(number), "--probabilities", *words)
        found = read(folder / "sub-1.nii.gz")
        assert np.any(found != before)
        np.testing.assert_array_equal(found, expected(before))
        names = ["sub-1_probabilities.nii.gz", "volumes.csv"]
        assert [(folder / name).read_bytes() == (raw / name).read_bytes() for name in names] == [True, False]
        with (folder / "volumes.csv").open(newline="") as file:
            rows = {(row["subject"], row["label"]): row for row in csv.DictReader(file)}
        assert int(rows["sub-1", "liver"]["voxels"]) == np.sum(found == 2)
        assert float(rows["sub-1", "liver"]["volume_ml"]) == pytest.approx(np.sum(found == 2) * VOXEL_ML, abs=1e-3)


def test_what_is_missing_is_made_and_the_rest_is_kept(models, scans, tmp_path):
    folder = run(models, scans, tmp_path / "out")
    before = (folder / "sub-1.nii.gz").stat().st_mtime_ns
    run(models, scans, folder, "--probabilities")
    assert (folder / "sub-1.nii.gz").stat().st_mtime_ns == before
    assert read(folder / "sub-1_probabilities.nii.gz").shape == (*SHAPE, 3)


def test_one_scan_to_one_label_map_and_its_probabilities(models, scans, tmp_path):
    run(models, scans / "sub-1/t1.nii.gz", tmp_path / "made/kidneys.nii", "--probabilities")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "kidneys.nii",
        "kidneys_probabilities.nii.gz",
        "kidneys_dseg.tsv",
        "kidneys_labels.ctbl",
        "kidneys_labels.itksnap.txt",
        "made_by.csv",
        "volumes.csv",
    }


def test_label_maps_come_with_names_and_colours(scans, tmp_path):
    chosen = {"label_colours": {next(iter(MODEL["labels"])): "#0A0BFF"}}
    model = write_model(tmp_path / "model", **chosen)
    folder = run([model], scans, tmp_path / "out")
    rows = [line.split("\t") for line in (folder / "dseg.tsv").read_text().splitlines()[2:]]
    assert {name: int(number) for number, name, _ in rows} == MODEL["labels"]
    assert [colour for _, name, colour in rows if name in chosen["label_colours"]] == ["#0A0BFF"]
    assert {"labels.itksnap.txt", "labels.ctbl"} < {path.name for path in folder.iterdir()}
    assert nibabel.load(folder / "sub-1.nii.gz").header.get_intent()[0] == "label"


def test_segmentations_of_slicer_hold_what_the_label_maps_hold(scans, tmp_path, models):
    slicerio = pytest.importorskip("slicerio", reason="slicerio is not installed: pip install slicerio")
    words = ("--largest-component", next(iter(MODEL["labels"])))
    folder = run(models[:1], scans, tmp_path / "out", "--seg-nrrd", *words)
    for subject in ("sub-1", "sub-2"):
        label = nibabel.load(folder / f"{subject}.nii.gz")
        found = slicerio.read_segmentation(str(folder / f"{subject}.seg.nrrd"))
        np.testing.assert_array_equal(found["voxels"], np.asarray(label.dataobj))
        np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ found["ijkToLPS"], label.affine, atol=1e-5)
        assert {each["name"]: each["labelValue"] for each in found["segments"]} == MODEL["labels"]
    with (folder / "made_by.csv").open(newline="") as file:
        options = {(row["subject"], row["result"]): row["options"] for row in csv.DictReader(file)}
    assert options["sub-1", "segments"] == options["sub-1", "label"] == " ".join(words)
    with pytest.raises(InputError, match="other options made 4 results there"):
        run(models[:1], scans, folder, "--seg-nrrd")


TABLES = [f"desc-mrccl_{name}" for name in ("dseg.tsv", "labels.ctbl", "labels.itksnap.txt")]
BIDS = {"layout": "bids", "files": {"t1": "T1w", "t2": "anat/T2w"}}


def test_scans_and_results_of_bids_are_a_data_set_and_its_derivative(tmp_path):
    model, root = write_model(tmp_path / "model", **BIDS), tmp_path / "data"
    for session in ("1", "2"):
        write_scan(root / f"sub-a/ses-{session}/anat/sub-a_ses-{session}_T1w.nii.gz", int(session))
    for place in (root, root / "predicted"):
        with pytest.raises(InputError, match=r"scans are looked for below '.*data'; give a folder elsewhere, or in"):
            run([model], root, place)
    folder = run([model], root, root / "derivatives/ours", "--probabilities")
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    names = [f"sub-a/ses-{n}/anat/sub-a_ses-{n}_desc-mrccl_{end}.nii.gz" for n in "12" for end in ("dseg", "probseg")]
    assert written == ["dataset_description.json", *TABLES, "made_by.csv", *names, "volumes.csv"]
    with (folder / "volumes.csv").open(newline="") as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {"sub-a_ses-1", "sub-a_ses-2"}
    again = run([model], root, root / "derivatives/ours", "--overwrite")  # results are not read as scans
    assert len(list(again.rglob("*_dseg.nii.gz"))) == 2


def test_the_scans_of_nnunet_without_labels_are_predicted_too(tmp_path):
    model = write_model(tmp_path / "model", layout="nnunet", files={"t1": "T1"})
    for number, part in enumerate(("imagesTr", "imagesTs")):
        write_scan(tmp_path / f"data/{part}/case_{number}_0000.nii.gz", number)
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "kidney": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "data/dataset.json").write_text(json.dumps(about | {"numTraining": 1}))
    folder = run([model], tmp_path / "data", tmp_path / "out")
    assert {path.name for path in folder.glob("*.nii.gz")} == {"case_0.nii.gz", "case_1.nii.gz"}
    assert {path.name for path in folder.iterdir()} > {"dataset.json", "made_by.csv", "volumes.csv"}


def test_a_model_trained_with_bias_correction_corrects_new_scans(scans, tmp_path):
    found = {}
    for corrected in ([], ["t1"]):
        model = write_model(tmp_path / f"model {len(corrected)}", bias_correction=corrected)
        for scan in (scans, scans / "sub-1/t1.nii.gz"):
            output = tmp_path / f"{len(corrected)}" / ("one.nii.gz" if scan.is_file() else "all")
            run([model], scan, output, "--probabilities")
            path = (
                output.with_name("one_probabilities.nii.gz")
                if scan.is_file()
                else output / "sub-1_probabilities.nii.gz"
            )
            found[len(corrected), scan.is_file()] = read(path)
    for corrected in (0, 1):
        np.testing.assert_array_equal(found[corrected, True], found[corrected, False])
    assert np.abs(found[0, True] - found[1, True]).max() > 0.001
    with pytest.raises(InputError, match=r"does not match .* \(bias_correction \['t1'\] and \[\]\)"):
        run([tmp_path / "model 0", tmp_path / "model 1"], scans, tmp_path / "out")


def test_volumes_of_other_subjects_stay_whatever_their_names_are(models, scans, tmp_path):
    odd = 'a "b", c'
    (scans / "sub-1").rename(scans / odd)
    folder = run(models, scans, tmp_path / "out")
    (scans / odd).rename(tmp_path / "elsewhere")
    run(models, scans, folder, "--overwrite")
    with (folder / "volumes.csv").open(newline="") as file:
        rows = [(row["subject"], row["label"]) for row in csv.DictReader(file)]
    assert rows == [(odd, "kidney"), (odd, "liver"), ("sub-2", "kidney"), ("sub-2", "liver")]
    (folder / "volumes.csv").write_text("subject;label\n")
    with pytest.raises(InputError, match=r"volumes.csv: its columns are not subject, label, voxels, volume_ml"):
        run(models, scans, folder)


def test_single_scans_are_named_after_their_results(models, scans, tmp_path):
    for subject in ("sub-1", "sub-2"):
        run(models, scans / subject / "t1.nii.gz", tmp_path / f"{subject}_label.nii.gz")
    with (tmp_path / "volumes.csv").open(newline="") as file:
        rows = [(row["subject"], row["label"]) for row in csv.DictReader(file)]
    assert rows == [(f"{subject}_label", label) for subject in ("sub-1", "sub-2") for label in ("kidney", "liver")]
    (scans / "sub-1" / "t1.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="^t1: '.*sub-1/t1.nii.gz'"):
        run(models, scans / "sub-1" / "t1.nii.gz", tmp_path / "other.nii.gz")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": {"liver": 1, "kidney": 2}}, r"labels {'liver': 1, 'kidney': 2} and {'kidney': 1, 'liver': 2}"),
        ({"contrasts": ["t2"]}, r"contrasts \['t2'\] and \['t1'\]"),
        ({"slices": {"image_size": [16, 16], "pixel_size": None}}, r"image_size \[16, 16\] and \[24, 24\]"),
        ({"slices": {"image_size": [24, 24], "pixel_size": 2.0}}, r"pixel_size 2.0 and None"),
        ({"percentiles": [0, 100]}, r"percentiles \[0.0, 100.0\] and \[1.0, 99.0\]"),
        ({"mask": "{subject}/mask.nii.gz"}, r"mask True and False"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_models_of_different_kinds_are_no_ensemble(models, scans, tmp_path, changes, what):
    other = write_model(tmp_path / "other", **changes)
    with pytest.raises(InputError, match=rf"other: does not match .*1 \({what}\); give matching models"):
        run([models[0], other], scans, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_networks_of_other_sizes_and_files_under_other_names_may_join(models, scans, tmp_path):
    other = write_model(tmp_path / "other", filters=[2, 4, 8], files={"t1": "t1_{subject}.nii.gz"})
    run([models[0], other], scans, tmp_path / "out")
    assert (tmp_path / "out/sub-2.nii.gz").exists()


@pytest.mark.parametrize(
    ("words", "changes", "line"),
    [
        (
            ["--largest-component", "spleen"],
            {},
            r"--largest-component spleen: not a class of the model \(kidney, liver",
        ),
        (["--min-component-ml", "-1"], {}, r"--min-component-ml -1: give a volume above 0"),
        (["--min-component-ml", "nan"], {}, r"--min-component-ml nan: give a volume above 0"),
        (["--min-component-ml", "1"], {"voxel_size_known": False}, r"no known voxel size, so there are no mL"),
    ],
)
def test_options_that_a_model_cannot_follow_are_refused(scans, tmp_path, words, changes, line):
    model = write_model(tmp_path / "model", **changes)
    with pytest.raises(InputError, match=line):
        run([model], scans, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()
