"""Data and configs are never run as code, and no name in them leads out of the work dir."""

import ast
import importlib.metadata
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from tests.bad_input.harness import listing, run
from tests.cohort import CONFIG, FIRST_FOUR, save, volumes, write_cohort, write_config

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("uncompiled")
FOLDERS = ("data", "evaluation", "losses", "models", "tools", "training", "utils")
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
# Calls and modules that run data as code.
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
MODULES = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "pty", "cloudpickle"}
ATTRIBUTES = {
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.Loader",
    "numpy.fromregex",
}
ATTRIBUTES |= {"pandas.read_pickle", "keras.config.enable_unsafe_deserialization", "tarfile.open"}


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def complaints(text):
    """Yield everything in a source that could run data as code."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in MODULES)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in MODULES:
            yield f"from {node.module} import"
        if isinstance(node, ast.Attribute) and (name := re.sub(r"^np\b", "numpy", dotted(node))) in ATTRIBUTES:
            yield name
        if isinstance(node, ast.Call):
            called, options = dotted(node.func), {word.arg: word.value for word in node.keywords}
            if called in CALLS:
                yield f"{called}()"
            if called in ("np.load", "numpy.load") and getattr(options.get("allow_pickle"), "value", True) is not False:
                yield "np.load without allow_pickle=False"
            if called == "torch.load" and getattr(options.get("weights_only"), "value", None) is not True:
                yield "torch.load without weights_only=True"
            if called.endswith("load_model") and getattr(options.get("safe_mode"), "value", None) is not True:
                yield "load_model without safe_mode=True"
            if getattr(options.get("shell"), "value", False) is not False:
                yield "shell=True"


def test_no_source_runs_data_as_code(subtests):
    allowed = {"weights.py": ["import pickle"], "yaml_files.py": ["yaml.load"]}  # each tested below
    for path in SOURCES:
        with subtests.test(str(path.relative_to(ROOT))):
            assert list(complaints(path.read_text())) == allowed.get(path.name, [])
    assert len(SOURCES) > 100


BAD_SOURCES = {
    "eval('1')": "eval()",
    "from pickle import loads": "from pickle import",
    "import joblib": "import joblib",
    "np.load(path)": "np.load without allow_pickle=False",
    "np.load(path, allow_pickle=True)": "np.load without allow_pickle=False",
    "yaml.load(text, Loader=yaml.SafeLoader)": "yaml.load",
    "torch.load(path)": "torch.load without weights_only=True",
    "torch.load(path, weights_only=False)": "torch.load without weights_only=True",
    "keras.saving.load_model(path)": "load_model without safe_mode=True",
    "subprocess.run(line, shell=True)": "shell=True",
    "os.system(line)": "os.system",
}


def test_the_search_finds_what_it_looks_for(subtests):
    for text, complaint in BAD_SOURCES.items():
        with subtests.test(text):
            assert list(complaints(text)) == [complaint]


def test_pickle_in_weights_is_used_for_the_name_of_an_error_only():
    text = (ROOT / "models" / "weights.py").read_text()
    assert set(re.findall(r"pickle\.\w+", text)) == {"pickle.UnpicklingError"}


def test_yaml_is_read_by_a_safe_loader():
    from utils.config import yaml_files

    text = (ROOT / "utils" / "config" / "yaml_files.py").read_text()
    (loader,) = set(re.findall(r"yaml\.load\([^)]*?(\w+)\)", text))
    assert issubclass(getattr(yaml_files, loader), (yaml.SafeLoader, yaml.CSafeLoader))


class Payload:
    """Code that a pickle would run when read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_payload_would_work(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "hacked")))
    assert (tmp_path / "hacked").exists()


@pytest.fixture
def work(finished, tmp_path):
    shutil.copytree(finished / "work", tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("place", ["pretraining/global/weights.npz", "pretraining/global/checkpoint.npz"])
@pytest.mark.parametrize("form", ["array", "bare"])
def test_pickles_in_files_are_not_run(place, form, finished, work, tmp_path):
    payload = Payload(tmp_path / "hacked")
    if place.endswith("checkpoint.npz"):
        (work / place).with_name("weights.npz").unlink()
    if form == "array":
        np.savez(work / place, metadata=np.array([payload], object), state=np.array([payload], object))
    else:
        (work / place).write_bytes(pickle.dumps(payload))
    outcome = run(FIRST_FOUR[2], "--config", finished / "tiny.yaml", "--work-dir", work)
    assert outcome.code == 2 and not (tmp_path / "hacked").exists()


def test_a_keras_file_with_code_in_it_is_not_run(finished, work, tmp_path):
    import keras

    cell, image = work / "finetuning" / "t1" / "random" / "n01" / "r0", keras.Input((16, 16, 1))
    target = str(tmp_path / "hacked")
    code = keras.layers.Lambda(lambda x: (__import__("os").makedirs(target, exist_ok=True), x)[1], (16, 16, 1))
    keras.Model(image, code(image)).save(cell / "model.keras")
    shutil.rmtree(target, ignore_errors=True)  # in case making the model ran it
    outcome = run("predict", "--model", cell, "--input", finished / "data", "--output", tmp_path / "out")
    assert outcome.code == 2 and "cannot be read as a Keras model" in outcome.said[0]
    assert not (tmp_path / "hacked").exists() and not list((tmp_path / "out").glob("*.nii.gz"))


EVIL = ["..", ".", "../outside", "a/../../outside", "/tmp/outside", "a/b", "..\\outside", "\x00", "a\nb"]


@pytest.mark.parametrize("name", EVIL)
def test_no_split_leads_out_of_the_work_dir(name, tmp_path):
    config = write_cohort(tmp_path / "cohort")
    splits = {"train": [name], "val": ["sub-2"], "test": ["sub-3"]}
    data = CONFIG["data"] | {"root": str(tmp_path / "cohort" / "data"), "splits": "splits.json"}
    write_config(tmp_path / "cohort", data=data)
    (tmp_path / "cohort" / "data" / "splits.json").write_text(json.dumps(splits))
    before = listing(tmp_path)
    for step in FIRST_FOUR[:2]:
        outcome = run(step, "--config", config)
        assert outcome.code == 2 and any("there are no such scans" in line for line in outcome.said)
    assert listing(tmp_path) == before


NAMES = ["..sub", "a b", "$(touch hacked)", "<script>alert(1)<-script>", "'; rm x", "sub-1.nii", "%2e%2e", "ü"]


def test_strange_names_of_folders_stay_names(tmp_path):
    """For any name that a file system allows, results are in the work dir, and nothing is run or followed."""
    folder = tmp_path / "cohort"
    for seed, name in enumerate(NAMES):
        for contrast, array in volumes(seed).items():
            save(folder / "data" / name / f"{contrast}.nii.gz", array)
    found = sorted(name for name in NAMES if not name.startswith("."))
    splits = {"train": found[:-2], "val": found[-2:-1], "test": found[-1:]}
    config = write_config(folder, data=CONFIG["data"] | {"root": str(folder / "data"), "splits": splits})
    for step in FIRST_FOUR[:2]:
        assert run(step, "--config", config).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cohort"}
    assert {path.name for path in folder.iterdir()} == {"data", "tiny.yaml", "work"}
    maps = {path.name.removesuffix(".nii.gz") for path in (folder / "work" / "constraint_maps").glob("*.nii.gz")}
    assert maps == set(found)


def test_names_in_hdf5_lead_nowhere(finished, work, tmp_path):
    """Step 4 takes subjects from splits and scans, not from the file; other names in it are refused."""
    path = work / "h5" / "annotated.h5"
    with h5py.File(path, "r+") as file:
        names = file.attrs["subjects"].astype("S40")
        names[names == b"sub-3"] = b"../../../outside"
        file.attrs["subjects"] = names
    shutil.rmtree(work / "finetuning")
    outcome = run(FIRST_FOUR[3], "--config", finished / "tiny.yaml", "--work-dir", work)
    assert outcome.code == 2 and any(line.startswith("sub-3: is not in") for line in outcome.said)
    assert {path.name for path in tmp_path.iterdir()} == {"work"}


@pytest.mark.parametrize("key", ["contrasts", "targets"])
def test_names_in_model_json_lead_nowhere(key, finished, work, tmp_path):
    cell = work / "finetuning" / "t1" / "random" / "n01" / "r0"
    model = json.loads((cell / "model.json").read_text())
    evil = "../../outside"
    if key == "contrasts":
        model |= {"contrasts": [evil], "files": {evil: "{subject}/t1.nii.gz"}}
    else:
        model |= {"targets": [evil], "crop_size": [16, 16], "overlap": 0.5}
    (cell / "model.json").write_text(json.dumps(model))
    before = listing(tmp_path)
    outcome = run("predict", "--model", cell, "--input", finished / "data", "--output", tmp_path / "out")
    assert outcome.code == 2 and "Traceback" not in "".join(outcome.said)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["name", "stages", "finetuning"])
def test_names_in_configs_lead_nowhere(place, tmp_path):
    """Stages and input sets give names to folders."""
    content, evil = json.loads(json.dumps(CONFIG)), "../../outside"
    if place == "stages":
        content["pretraining"]["stages"] = {evil: content["pretraining"]["stages"]["global"]}
        content["finetuning"]["inits"] = ["random", evil]
    elif place == "finetuning":
        content["finetuning"]["contrasts"] = {evil: ["t1"]}
    else:
        content["constraint_maps"]["spaces"] = {evil: ["t1"]}
    content |= {"work_dir": str(tmp_path / "work"), "data": content["data"] | {"root": str(tmp_path)}}
    (tmp_path / "evil.yaml").write_text(yaml.safe_dump(content))
    outcome = run(FIRST_FOUR[0], "--config", tmp_path / "evil.yaml")
    assert outcome.code == 2 and any("outside" in line or "letters" in line for line in outcome.said)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.yaml"]


def test_an_archive_of_weights_writes_nothing(finished, work, tmp_path):
    """Members of an .npz file are read by name and never unpacked."""
    path = work / "pretraining" / "global" / "weights.npz"
    with np.load(path) as content, zipfile.ZipFile(path.with_name("new.npz"), "w") as archive:
        for name in (*content.files, "../../../../outside"):
            buffer = io.BytesIO()
            np.save(buffer, content[name] if name in content.files else np.zeros(3), allow_pickle=False)
            archive.writestr(f"{name}.npy", buffer.getvalue())
    path.with_name("new.npz").rename(path)
    run(FIRST_FOUR[3], "--config", finished / "tiny.yaml", "--work-dir", work, "--overwrite")
    assert {path.name for path in tmp_path.iterdir()} == {"work"}


def test_the_report_shows_names_and_runs_none(finished, work):
    name = "<script>alert(1)</script>"
    for path in work.rglob("metrics.json"):
        metrics = json.loads(path.read_text())
        for row in metrics["per_subject"]:
            row["subject"] = name
        path.write_text(json.dumps(metrics))
    outcome = run("reproduce_tables", "--config", finished / "tiny.yaml", "--work-dir", work)
    assert outcome.code == 0, outcome.said
    page = (work / "report" / "index.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_every_dependency_is_pinned_to_one_version():
    for name in ("requirements.txt", "requirements-gpu.txt", "requirements-grid.txt", "requirements-nnunet.txt"):
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        unpinned = [
            line for line in lines if line and not re.fullmatch(r"[\w.\[\],-]+==[\w.]+|-r requirements\S*", line)
        ]
        assert unpinned == []


def test_the_versions_that_are_pinned_are_those_that_are_tested():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = dict(line.split("==") for line in lines if line)
    assert len(pins) > 20
    assert {name: importlib.metadata.version(name) for name in pins} == pins


def test_what_is_installed_goes_together():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
