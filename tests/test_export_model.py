"""tools.export_model: folders for predict.py, plain Keras, JAX, TensorFlow and ONNX Runtime, without subject names."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import nibabel
import numpy as np
import pytest
import yaml

import predict
from data.scans.volumes import write_nifti
from models.portable import load_network, read_keras
from models.unet import build_encoder, build_unet
from models.weights import read_weights, save_weights, transfer
from tools import export_model
from utils.checks import InputError
from utils.config.load import load_config
from utils.model_description import read_model_description

ROOT = Path(__file__).resolve().parents[1]
FILTERS = [4, 8]
MODEL = {
    "name": "small",
    "simulated": True,
    "contrasts": ["t1"],
    "files": {"t1": "{subject}/t1.nii.gz"},
    "mask": None,
    "labels": {"kidney": 1, "liver": 2},
    "voxel_size_known": True,
    "percentiles": [1, 99],
    "slices": {"image_size": [32, 32], "pixel_size": 2.0, "min_foreground": 0.1},
    "filters": FILTERS,
    "trained_on": ["anna", "bert"],
    "config_hash": "0123456789ab",
}
SYNTHESIS = {
    "targets": ["t2"],
    "target_intensities": {"t2": {"anna": [0, 100]}},
    "crop_size": [16, 16, 8],
    "overlap": 0.5,
}
METRICS = {
    "config_hash": "0123456789ab",
    "seed": 5,
    "train_subjects": ["anna", "bert"],
    "validation_subjects": ["carl"],
    "init": "late",
    "n_annotated": 2,
    "repeat": 0,
    "per_subject": [
        {"subject": "dora", "label": "kidney", "dice": 0.8, "hd95_mm": 3.0, "surface_dice": None},
        {"subject": "emil", "label": "kidney", "dice": 0.6, "hd95_mm": 5.0, "surface_dice": None},
        {"subject": "dora", "label": "liver", "dice": 0.9, "hd95_mm": 4.0, "surface_dice": None},
        {"subject": "emil", "label": "liver", "dice": None, "hd95_mm": None, "surface_dice": None},
    ],
}
TRAINING = {"epochs": 1, "batch_size": 2, "learning_rate": 0.001}
CONFIG = {
    "name": "small",
    "work_dir": "/home/someone/work",
    "data": {
        "root": "/home/someone/scans",
        "contrasts": {"t1": "{subject}/t1.nii.gz", "t2": "{subject}/t2.nii.gz"},
        "label": "{subject}/label.nii.gz",
        "labels": {"kidney": [1], "liver": [2]},
        "splits": {"train": ["anna", "bert", "finn"], "val": ["carl"], "test": ["dora", "emil"]},
    },
    "constraint_maps": {"contrasts": ["t1", "t2"], "clusters": 3, "components": 1},
    "slices": {"image_size": [32, 32], "pixel_size": 2.0},
    "network": {"filters": FILTERS},
    "pretraining": {
        "contrasts": ["t1"],
        "stages": {"late": {"method": "global", "warm_start": "/home/someone/early.npz", "training": TRAINING}},
    },
}
PRIVATE = re.compile(rb"anna|bert\b|carl|dora|emil|finn|someone")


def write_cell(folder, repeat=0, **changes):
    """Write a cell of step 4 in a work dir, beside the stage that it started from."""
    model = MODEL | changes
    folder.mkdir(parents=True)
    size = model.get("crop_size") or model["slices"]["image_size"]
    head = {"head": "synthesis", "outputs": 1} if "targets" in model else {"outputs": 3}
    shape = (*size, len(model["contrasts"]))
    network = build_unet(shape, rank=len(size), filters=FILTERS, seed=repeat, **head)
    save_weights(network, folder / "weights.npz", half=True)
    (folder / "model.json").write_text(json.dumps(model))
    (folder / "metrics.json").write_text(json.dumps(METRICS | {"repeat": repeat}))
    (folder / "resolved_config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Return a work dir with a stage, two cells and a synthesis cell, and the exports of all."""
    work = tmp_path_factory.mktemp("work")
    cells = [write_cell(work / f"finetuning/t1/late/n02/r{repeat}", repeat) for repeat in (0, 1)]
    write_cell(work / "synthesis/late/n02/r0", **SYNTHESIS)
    stage = work / "pretraining/late"
    stage.mkdir(parents=True)
    seen = {"train": ["anna", "bert", "finn"], "val": ["carl"]}
    network = build_encoder((32, 32, 1), filters=FILTERS, features=8, seed=3)
    save_weights(network, stage / "weights.npz", contrasts=["t1"], subjects=seen, config_hash="ab")
    (stage / "resolved_config.yaml").write_text(yaml.safe_dump(CONFIG))
    export("--model", cells[0], "--output", work / "one", "--formats", "saved_model", "--licence", "CC-BY-4.0")
    export("--model", *cells, "--output", work / "both")
    export("--model", work / "synthesis/late/n02/r0", "--output", work / "made")
    export("--model", stage, "--output", work / "encoder")
    write_nifti(
        work / "scans/zoe/t1.nii.gz", np.kron(np.random.default_rng(0).random((6, 6, 4)), np.ones((4, 4, 1))), np.eye(4)
    )
    return work


def export(*words):
    export_model.main([*map(str, words)])


STAGES = {
    "global": {"method": "global"},
    "local": {"method": "local", "freeze_encoder": False},
    "regression": {"method": "regression"},
    "constrained": {"method": "constrained"},
    "constrained_in_mm": {"method": "constrained", "patch_mm": 8.0, "nearest_share": 0.06, "anchors_share": 0.2},
    "partial": {"method": "constrained", "decoder_levels": 1, "patch_size": 1},
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("by_itself", [False, True])
def test_the_encoder_of_any_stage_is_exported(tmp_path, name, by_itself):
    """The step itself writes the config, with all defaults."""
    pretraining = {
        "contrasts": ["t1", "t2"],
        "contrasts_as": "samples" if by_itself else "channels",
        "stages": {name: STAGES[name] | {"training": TRAINING}},
    }
    path, stage = tmp_path / "small.yaml", tmp_path / "work/pretraining" / name
    path.write_text(yaml.safe_dump(CONFIG | {"pretraining": pretraining}))
    config = load_config(path)
    stage.mkdir(parents=True)
    (stage / "resolved_config.yaml").write_text(yaml.safe_dump(config.plain(), sort_keys=False))
    shape = (32, 32, 1 if by_itself else 2)
    settings = {"filters": FILTERS, "seed": 3, "features": 8}
    if name == "global":
        network = build_encoder(shape, **settings)
    else:
        head = {"head": "reconstruction", "outputs": shape[-1]} if name == "regression" else {"head": "projection"}
        network = build_unet(shape, decoder_levels=1 if name == "partial" else None, **head, **settings)
    shown = {"contrasts": None, "contrasts_one_by_one": ["t1", "t2"]} if by_itself else {"contrasts": ["t1", "t2"]}
    save_weights(network, stage / "weights.npz", subjects={"train": ["anna"]}, config_hash="ab", **shown)
    export("--model", stage, "--output", tmp_path / "encoder")
    encoder = read_keras(tmp_path / "encoder/encoder.keras")
    images = np.random.default_rng(2).random((2, *shape)).astype("float32")
    expected = build_encoder(shape, filters=FILTERS, head=None, seed=9)
    transfer(network, expected)
    layers = [expected.get_layer(f"encoder_{level}_relu_2").output for level in range(1, len(FILTERS) + 1)]
    levels = keras.Model(expected.input, layers).predict_on_batch(images)
    for found, right in zip(encoder.predict_on_batch(images), levels, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)
    again = load_config(tmp_path / "encoder/config.yaml")
    assert again.pretraining == config.pretraining and again.network == config.network


def images_for(network):
    shape = [size or 16 for size in network.input_shape[1:]]
    return np.random.default_rng(1).random((2, *shape)).astype("float32")


@pytest.mark.parametrize(("name", "cells"), [("one", ["r0"]), ("both", ["r0", "r1"])])
def test_predict_makes_the_same_of_a_scan_from_the_folder_alone(work, tmp_path, name, cells):
    folders = {"cell": [work / "finetuning/t1/late/n02" / cell for cell in cells], "exported": [work / name]}
    for form, models in folders.items():
        words = ["--model", *models, "--input", work / "scans", "--output", tmp_path / form, "--probabilities"]
        predict.main([*map(str, words)])
    names = ["zoe.nii.gz", "zoe_probabilities.nii.gz"]
    pairs = [[nibabel.load(tmp_path / form / name).get_fdata() for form in folders] for name in names]
    assert (pairs[0][0] > 0).mean() > 0.01
    np.testing.assert_array_equal(*pairs[0])
    np.testing.assert_allclose(*pairs[1], atol=2e-5)


def test_a_synthesising_model_keeps_its_weights(work):
    model = read_model_description(work / "made/model.json")
    cell, exported = (load_network(folder, model) for folder in (work / "synthesis/late/n02/r0", work / "made"))
    images = images_for(cell)
    np.testing.assert_allclose(exported.predict_on_batch(images), cell.predict_on_batch(images), atol=1e-6)


def test_the_encoder_is_the_pretrained_one_for_images_of_any_size(work):
    encoder = read_keras(work / "encoder/encoder.keras")
    network = build_encoder((64, 48, 1), filters=FILTERS, head=None, seed=9)
    transfer(read_weights(work / "pretraining/late/weights.npz")[0], network)
    images = np.random.default_rng(1).random((2, 64, 48, 1)).astype("float32")
    levels = encoder.predict_on_batch(images)
    assert [level.shape for level in levels] == [(2, 64, 48, 4), (2, 32, 24, 8)]
    np.testing.assert_allclose(levels[-1], network.predict_on_batch(images), atol=1e-5)


def run_outside(folder, code, backend="tensorflow"):
    """Run code in a fresh process that finds Keras and nothing of this suite."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings = kept | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, env=settings, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_the_lines_of_the_documentation_work_in_plain_keras(work, tmp_path, backend):
    """They also work on another backend, with the same outputs as here."""
    lines = re.search(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)[1]
    assert len(list(filter(None, lines.splitlines()))) == 5
    images, expected = {}, {}
    for name in ("one/model", "both/model", "encoder/encoder"):
        network = read_keras(work / f"{name}.keras")
        images[name] = images_for(network)
        outputs = keras.tree.flatten(network.predict_on_batch(images[name]))
        expected |= {f"{name}/{number}": np.asarray(output) for number, output in enumerate(outputs)}
    np.savez(tmp_path / "images.npz", **images)
    run_outside(
        work,
        f"""{lines}
import numpy as np
assert keras.backend.backend() == {backend!r}
assert network.predict_on_batch(np.zeros((3, 96, 96, 1), "float32")).shape[0] == 3
made, images = {{}}, np.load({str(tmp_path / "images.npz")!r})
for name in images:
    outputs = keras.tree.flatten(keras.saving.load_model(name + ".keras").predict_on_batch(images[name]))
    made |= {{f"{{name}}/{{number}}": np.asarray(output) for number, output in enumerate(outputs)}}
np.savez({str(tmp_path / "made.npz")!r}, **made)
""",
        backend,
    )
    made = np.load(tmp_path / "made.npz")
    assert made.keys() == expected.keys() and len(expected) == 4
    for name, values in expected.items():
        np.testing.assert_allclose(made[name], values, atol=1e-4, err_msg=name)


def test_saved_model_gives_the_same(work):
    network = read_keras(work / "one/model.keras")
    images = images_for(network)
    served = keras.layers.TFSMLayer(str(work / "one/saved_model"), call_endpoint="serve")
    np.testing.assert_allclose(np.asarray(served(images)), network.predict_on_batch(images), atol=1e-5)


@pytest.mark.parametrize(
    ("source", "name"),
    [("finetuning/t1/late/n02/r0", "model"), ("synthesis/late/n02/r0", "model"), ("pretraining/late", "encoder")],
)
def test_onnx_gives_the_same_for_batches_of_any_size(work, tmp_path, source, name):
    import onnxruntime

    export("--model", work / source, "--output", tmp_path, "--formats", "onnx")
    network = read_keras(tmp_path / f"{name}.keras")
    session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2):
        images = images_for(network)[:count]
        found = session.run(None, {"image": images})
        for one, other in zip(found, keras.tree.flatten(network.predict_on_batch(images)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)


def test_without_the_packages_onnx_is_refused(work, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs onnx, tf2onnx, onnxruntime; make install installs them"):
        export("--model", work / "finetuning/t1/late/n02/r0", "--output", tmp_path / "out", "--formats", "onnx")
    assert not (tmp_path / "out").exists()


def test_nothing_exported_names_a_subject_or_a_place(work):
    for folder in ("one", "both", "made", "encoder"):
        files = [path for path in (work / folder).rglob("*") if path.is_file()]
        assert {"README.md", "config.yaml"} < {path.name for path in files}
        for path in files:
            content = path.read_bytes()
            if path.suffix == ".keras":
                with zipfile.ZipFile(path) as archive:
                    content = b"".join(archive.read(name) for name in archive.namelist())
            assert not PRIVATE.search(content), path
    assert load_config(work / "one/config.yaml").data.splits.train == 3


def test_the_card_says_what_the_cell_says(work):
    card = (work / "one/README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"], front["pipeline_tag"]) == (
        "CC-BY-4.0",
        "keras",
        "image-segmentation",
    )
    for line in (
        "| scans | **simulated**: the scores say nothing about real scans |",
        "| annotated subjects trained on | 2 |",
        "| validation subjects | 1 |",
        "| test subjects | 2 |",
        "| start of training | late, pretrained on 3 subjects without labels |",
        "| class | Dice (0 to 1) | HD95 [mm] | n |",
        "| kidney | 0.700 ± 0.141 | 4.0 ± 1.4 | 2 |",
        "| liver | 0.900 | 4.0 | 1 |",
        "- resampled in the plane to 2 mm",
        "| hash of the config | 0123456789ab |",
        "| `saved_model` | the network, for TensorFlow |",
    ):
        assert line in card.splitlines(), line
    both = (work / "both/README.md").read_text()
    assert "the mean of 2 U-Nets" in both and "| 2 | kidney | 0.700 ± 0.141 | 4.0 ± 1.4 | 2 |" in both
    assert "repeat | 0, 1 |" in both and "CC-BY-4.0" not in both
    assert "Synthesises t2 from t1" in (work / "made/README.md").read_text()
    assert "| subjects | 3 |" in (work / "encoder/README.md").read_text()


def test_what_cannot_be_exported_is_refused(work, tmp_path):
    cell, stage = work / "finetuning/t1/late/n02/r0", work / "pretraining/late"
    for words, line in {
        ("--model", tmp_path): r"neither model.json nor the weights.npz of a stage there; give a cell or a stage",
        ("--model", cell, stage): r"late: is a stage of step 3; export it alone",
        ("--model", cell, work / "synthesis/late/n02/r0"): r"does not match",
    }.items():
        with pytest.raises(InputError, match=line):
            export(*words, "--output", tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"is the folder of the model itself; give another one"):
        export("--model", cell, "--output", cell, "--overwrite")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"taken: is not empty \(notes.txt\); give another folder, or --overwrite"):
        export("--model", cell, "--output", tmp_path / "taken")
    export("--model", cell, "--output", tmp_path / "taken", "--overwrite")
    assert (tmp_path / "taken/notes.txt").read_text() == "mine" and (tmp_path / "taken/model.json").exists()


def test_a_keras_file_that_would_run_code_or_is_damaged_is_refused(work, tmp_path):
    image = keras.Input((32, 32, 1))
    keras.Model(image, keras.layers.Lambda(lambda x: x)(image)).save(tmp_path / "lambda.keras")
    with pytest.raises(InputError, match=r"lambda.keras: cannot be read as a Keras model \(.*[Ll]ambda"):
        read_keras(tmp_path / "lambda.keras")
    content = (work / "one/model.keras").read_bytes()
    for name, damaged in {"cut": content[: len(content) // 2], "empty": b"", "text": b"weights"}.items():
        (tmp_path / f"{name}.keras").write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{name}.keras: cannot be read as a Keras model \(.+\); export"):
            read_keras(tmp_path / f"{name}.keras")


def test_a_network_that_does_not_fit_its_description_is_refused(work):
    model = read_model_description(work / "one/model.json")
    with pytest.raises(InputError, match=r"the network takes \(None, 32, 32, 1\), but model.json describes \(.* 2\)"):
        load_network(work / "one", model.model_copy(update={"contrasts": ["t1", "t2"]}))
    with pytest.raises(InputError, match=r"the network gives \(None, 32, 32, 3\), but model.json describes \(.* 2\)"):
        load_network(work / "one", model.model_copy(update={"labels": {"kidney": 1}}))


def test_configs_that_differ_are_all_kept(work, tmp_path):
    cells = [work / f"finetuning/t1/late/n02/r{repeat}" for repeat in (0, 1)]
    assert len(export_model.shareable_configs(cells)) == 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "resolved_config.yaml").write_text(yaml.safe_dump(CONFIG | {"seed": 8}))
    first, second = export_model.shareable_configs([*cells, other])
    assert "seed" not in yaml.safe_load(first) and yaml.safe_load(second)["seed"] == 8
    assert export_model.shareable_configs([tmp_path]) == []
