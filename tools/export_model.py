"""Export finetuned models, or a pretrained encoder, as a self-contained folder.

    python -m tools.export_model --model runs/lgg_tcga/finetuning/flair/constrained/n08/r0 --output lgg_model/
    python -m tools.export_model --model runs/lgg_tcga/finetuning/flair/constrained/n08/r* --output lgg_ensemble/
    python -m tools.export_model --model runs/lgg_tcga/pretraining/constrained --output lgg_encoder/ --formats onnx

Reads   cell folders of step 4 (outputs of several matching cells are averaged), or one stage folder of step 3.
Writes  model.keras (for a stage encoder.keras, which returns all levels), loaded by Keras without this suite;
        model.json (contrasts, labels, preprocessing), config.yaml and README.md, a model card. With --formats also
        model.onnx (needs onnx, tf2onnx, onnxruntime), saved_model/, and model.pt with unet.py, a PyTorch module that
        needs no Keras (needs torch); each is run once and compared with model.keras.
        Subject names and file paths are removed everywhere.
Takes   seconds.
Next    python predict.py --model DIR --input scans/ --output predictions/
"""

import functools
import importlib.util
import logging
import shutil
import warnings
from pathlib import Path

from utils.checks import InputError
from utils.command_line import check_writable, parser_of
from utils.config.yaml_files import read_yaml
from utils.disk import results_go_to
from utils.model_description import EncoderDescription, check_agreement, read_model_description
from utils.runs import atomic_path, exit_code_of, read_json, write_json
from utils.work_dir import METRICS, MODEL, WEIGHTS, WorkDir

log = logging.getLogger("mrccl")
SAME = 1e-4  # largest difference between exported formats
KEPT_AT_HOME = ("trained_on", "target_intensities")  # keys of model.json that name subjects
WRITTEN = (MODEL, "encoder.json", "model.keras", "encoder.keras", "model.onnx", "encoder.onnx", "model.pt",
           "encoder.pt", "unet.py", "config.yaml")  # fmt: skip
FILES = {
    "keras": "the network, for Keras on any backend",
    "json": "contrasts, labels and preprocessing, for predict.py",
    "yaml": "the config that it was made with, without paths and subject names",
    "onnx": "the network, for ONNX Runtime",
    "saved_model": "the network, for TensorFlow",
    "pt": "the weights, for PyTorch: a state dict",
    "py": "the network as a PyTorch module, which loads the .pt file",
}


@results_go_to("--output")
def main(arguments=None):
    options = read_options(arguments)
    check_output(options)
    stages = [folder for folder in options.model if is_stage(folder)]
    if stages and len(options.model) > 1:
        raise InputError(f"--model {stages[0]}: is a stage of step 3; export it alone")
    check_formats(options.formats)
    (export_encoder if stages else export_model)(options)
    log.info("wrote %s", options.output)
    if not stages:
        log.info("next: python predict.py --model %s --input scans/ --output predictions/", options.output)


def read_options(arguments):
    parser = parser_of(__doc__)
    text = "cells of step 4, or a stage of step 3"
    parser.add_argument("--model", required=True, nargs="+", type=Path, metavar="DIR", help=text)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    text = "formats besides Keras"
    parser.add_argument("--formats", nargs="+", default=(), choices=("onnx", "saved_model", "torch"), help=text)
    parser.add_argument("--licence", default="not stated", metavar="NAME", help="for the model card, such as CC-BY-4.0")
    parser.add_argument("--intended-use", metavar="TEXT", help="for the model card (default: research)")
    parser.add_argument("--overwrite", action="store_true", help="replace an exported model")
    return parser.parse_args(arguments)


def is_stage(folder):
    """True for a stage of step 3, False for a model folder."""
    if (folder / MODEL).is_file():
        return False
    if (folder / WEIGHTS).is_file() and (folder / "resolved_config.yaml").is_file():
        return True
    raise InputError(
        f"--model {folder}: neither model.json nor the weights.npz of a stage there; give a cell or a stage"
    )


def check_output(options):
    """Refuse an output folder that is not empty or not writable."""
    output = options.output
    check_writable(output, "--output", "give another folder")
    if output.resolve() in {folder.resolve() for folder in options.model}:
        raise InputError(f"--output {output}: is the folder of the model itself; give another one")
    taken = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if taken and not options.overwrite:
        raise InputError(
            f"--output {output}: is not empty ({', '.join(taken[:3])}); give another folder, or --overwrite"
        )


def check_formats(formats):
    """Refuse formats that are not available here."""
    if not formats:
        return
    import keras

    by_keras = [form for form in formats if form != "torch"]
    if by_keras and keras.backend.backend() != "tensorflow":
        raise InputError(
            f"--formats {by_keras[0]}: needs KERAS_BACKEND=tensorflow, not {keras.backend.backend()}; "
            "the result is the same"
        )
    if "torch" in formats and not importlib.util.find_spec("torch"):
        raise InputError("--formats torch: needs torch to write the file; pip install torch")
    missing = [name for name in ("onnx", "tf2onnx", "onnxruntime") if not importlib.util.find_spec(name)]
    if "onnx" in formats and missing:
        raise InputError(f"--formats onnx: needs {', '.join(missing)}; make install installs them")


def export_model(options):
    """Export cells as one network that averages their outputs."""
    from evaluation.report.model_card import RESEARCH, model_card
    from models.portable import load_network, mean_of, portable

    members = {folder: read_member(folder) for folder in options.model}
    check_agreement({folder: member.model for folder, member in members.items()})
    networks = [load_network(folder, member.model) for folder, member in members.items()]
    # An exported model is portable already.
    networks = [portable(network) if network.name == "unet" else network for network in networks]
    about = {"licence": options.licence, "intended_use": options.intended_use or RESEARCH}
    model = next(iter(members.values())).model
    card = functools.partial(model_card, list(members.values()), **about)
    write_folder(options, "model", mean_of(networks), model, card)


def read_member(folder):
    """Read the description of a cell's model."""
    from evaluation.report.model_card import Member

    paths = folder / METRICS, folder / "environment.json"
    metrics, environment = (read_json(path) if path.is_file() else None for path in paths)
    seen = subjects_of_stage(folder, metrics["init"]) if metrics else None
    return Member(read_model_description(folder / MODEL), metrics, environment, seen)


def subjects_of_stage(folder, init):
    """Return the number of subjects in the stage from which a cell started; None if it no longer exists."""
    from models.weights import read_weights

    stages = (WorkDir(parent).stage_weights(init) for parent in folder.resolve().parents)
    found = next((path for path in stages if path.is_file()), None)
    return len(read_weights(found)[1].get("subjects", {}).get("train", ())) or None if found else None


def export_encoder(options):
    """Export the encoder of a stage of pretraining."""
    from evaluation.report.model_card import encoder_card
    from models.portable import pretrained_encoder
    from models.weights import read_weights
    from utils.config.load import load_config

    (folder,) = options.model
    arrays, metadata = read_weights(folder / WEIGHTS)
    config = load_config(folder / "resolved_config.yaml")
    one_by_one = metadata.get("contrasts_one_by_one")
    encoder = EncoderDescription(
        name=config.name,
        stage=folder.name,
        simulated=config.data.simulated,
        contrasts=metadata.get("contrasts"),
        **config.reading(),
        mask=config.data.mask,
        percentiles=config.percentiles(),
        slices=config.plain()["slices"],
        rank=config.network.rank,
        filters=config.network.filters,
        subjects=len(metadata.get("subjects", {}).get("train", ())),
        config_hash=metadata.get("config_hash"),
        **({"contrasts_one_by_one": one_by_one} if one_by_one else {}),
    )
    channels = len(encoder.contrasts or [None])
    network = pretrained_encoder(arrays, channels, rank=encoder.rank, filters=encoder.filters)
    path = folder / "environment.json"
    environment = read_json(path) if path.is_file() else None
    card = functools.partial(encoder_card, encoder, environment, licence=options.licence)
    write_folder(options, "encoder", network, encoder, card)


def write_folder(options, name, network, description, card):
    """Write all files, ending with the description, which makes the folder usable."""
    from models.portable import write_keras

    output = options.output
    output.mkdir(parents=True, exist_ok=True)
    for old in (*WRITTEN, *(path.name for path in output.glob("config_[0-9].yaml"))):
        (output / old).unlink(missing_ok=True)
    shutil.rmtree(output / "saved_model", ignore_errors=True)
    write_keras(network, output / f"{name}.keras")
    written = [f"{name}.keras", f"{name}.json"]
    for form in options.formats:
        path = output / {"onnx": f"{name}.onnx", "torch": f"{name}.pt"}.get(form, form)
        export_as(form, network, path)
        written += [path.name, *(["unet.py"] if form == "torch" else [])]
    for number, config in enumerate(shareable_configs(options.model), start=1):
        written.append("config.yaml" if number == 1 else f"config_{number}.yaml")
        write_text(output / written[-1], config)
    files = [(file, FILES[file.rpartition(".")[2]]) for file in written]
    write_text(output / "README.md", card(files=files))
    write_json(output / f"{name}.json", description.as_json(leave_out=KEPT_AT_HOME))


def export_as(form, network, path):
    """Export a network for another library, run it there, and compare."""
    import keras
    import numpy as np

    smallest = 2 ** len([layer for layer in network.layers if "pool" in layer.name])
    shape = [size or 2 * smallest for size in network.input_shape[1:]]
    images = np.random.default_rng(0).random((2, *shape)).astype("float32")
    expected = map(
        keras.ops.convert_to_numpy, keras.tree.flatten(network(images))
    )  # Keras exports only networks that were called
    if form == "onnx":
        import onnxruntime

        with atomic_path(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # from numpy, about names that the converter looks up
            network.export(temporary, format="onnx", verbose=False)

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: images})
    elif form == "torch":
        from models.to_torch import run_torch, write_torch

        write_torch(network, path)
        found = run_torch(path, images)
    else:
        network.export(path, format="tf_saved_model", verbose=False)
        found = keras.tree.flatten(keras.layers.TFSMLayer(path, call_endpoint="serve")(images))
    pairs = zip(expected, found, strict=True)
    difference = max(float(np.abs(one - np.asarray(other)).max()) for one, other in pairs)
    if not difference <= SAME:
        raise RuntimeError(f"{path} differs from the network by {difference:.2g}")
    log.info("%s: differs from the network by at most %.1g", path, difference)


def shareable_configs(folders):
    """Return the configs of some models as YAML text, each once, without paths and names of subjects."""
    import yaml

    texts = []
    for folder in folders:
        if not (folder / "resolved_config.yaml").is_file():
            continue
        config = read_yaml(folder / "resolved_config.yaml")
        config["work_dir"], config["data"]["root"] = f"runs/{config['name']}", "scans"
        splits = config["data"]["splits"]
        if isinstance(splits, dict):
            config["data"]["splits"] = {key: len(s) if isinstance(s, list) else s for key, s in splits.items()}
        for stage in ((config.get("pretraining") or {}).get("stages") or {}).values():
            stage["warm_start"] = stage["warm_start"] and Path(stage["warm_start"]).name
        texts.append(yaml.safe_dump(config, sort_keys=False))
    return list(dict.fromkeys(texts))


def write_text(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
