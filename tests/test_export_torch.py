"""Export to PyTorch: unet.py needs neither Keras nor this suite, and gives the outputs of the network."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import models.to_torch
from evaluation.report.model_card import Member, encoder_card, model_card
from models.portable import pretrained_encoder, read_keras
from models.unet import build_encoder
from models.weights import save_weights, weights_of
from tests.test_export_model import CONFIG, FILTERS, METRICS, MODEL, PRIVATE, SYNTHESIS, export, images_for, write_cell
from utils.checks import InputError
from utils.model_description import EncoderDescription, SegmentationModel, SynthesisModel

ROOT = Path(__file__).resolve().parents[1]
FILES = [("model.pt", "the weights"), ("unet.py", "the network")]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return folder and file of PyTorch modules by name: a cell, an ensemble, a 3D synthesis and an encoder."""
    pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch==2.13.0)")
    import yaml

    work = tmp_path_factory.mktemp("torch")
    cells = [write_cell(work / f"finetuning/t1/late/n02/r{repeat}", repeat) for repeat in (0, 1)]
    made = write_cell(work / "synthesis/late/n02/r0", **SYNTHESIS)
    stage = work / "pretraining/late"
    stage.mkdir(parents=True)
    network = build_encoder((32, 32, 1), filters=FILTERS, features=8, seed=3)
    save_weights(network, stage / "weights.npz", contrasts=["t1"], subjects={"train": ["anna"]}, config_hash="ab")
    (stage / "resolved_config.yaml").write_text(yaml.safe_dump(CONFIG))
    sources = {"one": cells[:1], "both": cells, "made": [made], "encoder": [stage]}
    for name, source in sources.items():
        export("--model", *source, "--output", work / name, "--formats", "torch")
    return {name: (work / name, "encoder" if name == "encoder" else "model") for name in sources}


@pytest.mark.parametrize("name", ["one", "both", "made", "encoder"])
def test_the_files_alone_give_what_keras_gives(exported, tmp_path, name):
    """Run in a fresh process that has PyTorch and numpy but cannot import Keras."""
    folder, file = exported[name]
    network = read_keras(folder / f"{file}.keras")
    images = images_for(network)
    np.save(tmp_path / "images.npy", np.moveaxis(images, -1, 1))
    code = f"""
import sys
sys.modules |= dict.fromkeys(("keras", "tensorflow", "jax", "models", "utils"))
sys.path.insert(0, ".")
import numpy as np, torch
from unet import load
outputs = load("{file}.pt")(torch.from_numpy(np.load({str(tmp_path / "images.npy")!r})))
outputs = outputs if isinstance(outputs, list) else [outputs]
np.savez({str(tmp_path / "made.npz")!r}, *(one.detach().numpy() for one in outputs))
"""
    subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, check=True, timeout=120)
    expected = keras.tree.flatten(network.predict_on_batch(images))
    made = list(np.load(tmp_path / "made.npz").values())
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_allclose(np.moveaxis(one, 1, -1), other, atol=1e-5)
    assert len(expected) == (len(FILTERS) if name == "encoder" else 1)


@pytest.mark.parametrize("name", ["one", "both", "made", "encoder"])
def test_the_lines_of_the_card_work(exported, name):
    folder, file = exported[name]
    card = (folder / "README.md").read_text()
    assert f"| `{file}.pt` | the weights, for PyTorch: a state dict |" in card and "| `unet.py` |" in card
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(list(filter(None, lines.splitlines()))) == 3
    output = lines.split(" = ")[0].splitlines()[-1]
    shown = f"len({output})" if name == "encoder" else f"{output}.shape"
    code = f"import sys; sys.path.insert(0, '.')\n{lines}\nprint({shown})"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    shapes = {"one": "1, 3, 32, 32", "both": "1, 3, 32, 32", "made": "1, 1, 32, 32, 32"}
    assert done.stdout.strip() == (f"torch.Size([{shapes[name]}])" if name in shapes else "2"), done.stderr


def test_the_lines_of_the_documentation_work(tmp_path):
    """The encoder has the filters of lgg_tcga and the folder name that the page uses."""
    pytest.importorskip("torch", reason="PyTorch is not installed (pip install torch==2.13.0)")
    _, lines, *_ = re.findall(r"```python\n(.*?)```", (ROOT / "docs/models.md").read_text(), re.DOTALL)
    filters = [16, 32, 64, 64, 64]
    encoder = pretrained_encoder(weights_of(build_encoder((16, 16, 1), filters=filters)), 1, rank=2, filters=filters)
    models.to_torch.write_torch(encoder, tmp_path / "lgg_encoder/encoder.pt")
    code = f"import sys; sys.path.insert(0, 'lgg_encoder')\n{lines}"
    code += "print([map.shape[-1] for map in features], network.encoder_1_conv_1.weight.grad.abs().max() > 0)\n"
    code += "print(torch.equal(network.encoder_3_conv_1.weight, encoder.encoder_3_conv_1.weight))"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["[96, 48, 24, 12, 6] tensor(True)", "True"], done.stderr


def test_nothing_exported_names_a_subject(exported):
    for folder, file in exported.values():
        assert not PRIVATE.search((folder / f"{file}.pt").read_bytes())
        assert (folder / "unet.py").read_text() == models.to_torch.SOURCE.read_text()


def test_a_file_that_computes_something_else_is_refused(exported, tmp_path, monkeypatch):
    cell = exported["one"][0].parent / "finetuning/t1/late/n02/r0"
    weights = models.to_torch.torch_weights
    monkeypatch.setattr(
        models.to_torch, "torch_weights", lambda network: {k: v * 1.01 for k, v in weights(network).items()}
    )
    with pytest.raises(RuntimeError, match=r"model.pt differs from the network by"):
        export("--model", cell, "--output", tmp_path / "out", "--formats", "torch")
    assert not (tmp_path / "out/model.json").exists()


def test_an_export_without_torch_removes_the_files_of_the_one_before(exported, tmp_path):
    cell = exported["one"][0].parent / "finetuning/t1/late/n02/r0"
    export("--model", cell, "--output", tmp_path, "--formats", "torch")
    assert (tmp_path / "model.pt").exists() and (tmp_path / "unet.py").exists()
    export("--model", cell, "--output", tmp_path, "--overwrite")
    assert not (tmp_path / "model.pt").exists() and not (tmp_path / "unet.py").exists()
    assert "PyTorch" not in (tmp_path / "README.md").read_text()


def test_without_torch_the_format_is_refused(tmp_path, monkeypatch):
    cell = write_cell(tmp_path / "finetuning/t1/late/n02/r0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--formats torch: needs torch .*pip install torch"):
        export("--model", cell, "--output", tmp_path / "out", "--formats", "torch")
    assert not (tmp_path / "out").exists()


def test_cards_say_what_the_module_returns():
    about = {"licence": "CC0-1.0", "files": FILES}
    cell = SegmentationModel.model_validate(MODEL)
    single = model_card([Member(cell, METRICS)], **about)
    assert "`(batch, contrasts, rows, columns)`" in single and "`logits(images)` of the network" in single
    assert 'probabilities = load("model.pt")(torch.rand(1, 1, 32, 32))' in single
    assert "logits" not in model_card([Member(cell, METRICS)] * 2, **about)
    synthesis = {key: value for key, value in (MODEL | SYNTHESIS).items() if key != "labels"}
    made = model_card([Member(SynthesisModel.model_validate(synthesis))], **about)
    assert "torch.rand(1, 1, 32, 32, 32)" in made and "rows, columns, slices)`" in made
    encoder = MODEL | {"stage": "late", "subjects": 3, "rank": 3, "filters": [4] * 8, "contrasts": ["t1", "t2"]}
    card = encoder_card(EncoderDescription.model_validate(encoder), None, **about)
    assert "features = " in card and "torch.rand(1, 2, 128, 128, 128)" in card and "finest first" in card
    assert "PyTorch" not in model_card([Member(cell, METRICS)], licence="CC0-1.0")
