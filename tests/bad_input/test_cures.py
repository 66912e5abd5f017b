"""The advice in messages works when typed, and uses options that the named script has."""

import argparse
import importlib
import re
import shutil

import numpy as np
import pytest
import yaml

from tests.bad_input.harness import ROOT, messages_of, run
from tests.bad_input.test_configs import CASES as CONFIGS
from tests.bad_input.test_configs import SOUND
from tests.cohort import AFFINE, FIRST_FOUR, save, volumes, write_cohort
from utils.checks import InputError
from utils.config.load import load_config

TOOLS = {f"tools.{path.stem}" for path in (ROOT / "tools").glob("[a-z]*.py")}
SCRIPTS = sorted({path.stem for path in ROOT.glob("*.py") if f"tools.{path.stem}" not in TOOLS} | TOOLS)
ROOMS = ["data", "evaluation", "losses", "models", "training", "utils"]
SHARED = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# unet.py is an exported file, and users do not call _nnunet.py.
COMMAND = re.compile(r"(?:(?<![%X/\w])(?!unet|_)([a-z_0-9]+)\.py|\b(tools\.[a-z_0-9]+))((?: (?:--[a-z-]+|X|%s|\w+/))*)")
# Options of Docker, Slurm, nvidia-smi, XLA, git and nnU-Net.
OF_OTHERS = {"--gpus", "--gres", "--shm-size", "--query-gpu", "--format", "--xla", "--porcelain", "--verify"}
TELLS_OF_OTHERS = ("tools.doctor", "tools.export_dataset", "tools.run_nnunet")  # in commands that they compose
OF_A_STEP = re.compile(r"run step \d again with --overwrite")


class Parsed(Exception):
    """Raised instead of parsing a command line."""


def file_of(script):
    return ROOT / f"{script.replace('.', '/')}.py"


def options_of(script):
    """Return the options of a script, from its parser."""

    def stop(parser, *_, **__):
        raise Parsed(list(parser._option_string_actions))

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        importlib.import_module(script).main([])
    return {name for name in caught.value.args[0] if name.startswith("--")}


@pytest.fixture(scope="module")
def options():
    return {script: options_of(script) for script in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_names_options_that_it_has(script, options):
    texts = [OF_A_STEP.sub("", COMMAND.sub("", text)) for text in messages_of(file_of(script))]
    named = {option for text in texts for option in OPTION.findall(text)} - OF_OTHERS
    assert named <= (set().union(*options.values()) if script in TELLS_OF_OTHERS else options[script])


def test_shared_messages_name_options_that_some_script_has(options):
    known = set().union(*options.values()) | OF_OTHERS
    named = {option: path for path in SHARED for text in messages_of(path) for option in OPTION.findall(text)}
    assert len(named) > 5 and not {option: path for option, path in named.items() if option not in known}


def test_commands_in_messages_exist_with_their_options(options):
    files = [*SHARED, *map(file_of, SCRIPTS)]
    found = [match for path in files for text in messages_of(path) for match in COMMAND.findall(text)]
    assert len(found) > 20
    for step, tool, words in found:
        script = step or tool
        assert script in options, script
        assert set(OPTION.findall(words)) <= options[script], (script, words)


SUGGESTIONS = {name: case for name, case in CONFIGS.items() if "did you mean '" in case[1]}


@pytest.mark.parametrize("name", SUGGESTIONS)
def test_a_suggested_key_is_one_that_is_read(name, tmp_path):
    text = SUGGESTIONS[name][0](SOUND.format(work=tmp_path / "work", data=tmp_path))
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "c.yaml")
    wrong, right = re.search(r"(\w+): unknown key; did you mean '(\w+)'", caught.value.lines[0]).groups()
    content = yaml.safe_load(text)
    rename(content, wrong, right)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    assert load_config(tmp_path / "c.yaml").name == "tiny"


def rename(content, wrong, right):
    for key, value in list(content.items()):
        if isinstance(value, dict):
            rename(value, wrong, right)
        if key == wrong:
            content[right] = content.get(right) or content[key]
            del content[key]


def with_value_7(folder):
    label = volumes(1)["label"]
    label[8, 7, 2] = 7
    save(folder / "sub-2/label.nii.gz", label)


def label_of_fewer_slices(folder):
    save(folder / "sub-2/label.nii.gz", volumes(1)["label"][..., :3])


def scan_of_fewer_slices(folder):
    save(folder / "sub-2/t2.nii.gz", volumes(1)["t2"][..., :3])


def nothing_labelled(folder):
    save(folder / "sub-2/label.nii.gz", volumes(1)["label"] * 0)


def series(folder):
    for number in (1, 2, 3):
        pair = [volumes(number)["t2"], volumes(number)["t1"]]
        save(folder / f"sub-{number}/t2.nii.gz", np.stack(pair, axis=-1) + 1)


def below_zero(folder):
    save(folder / "sub-2/t2.nii.gz", volumes(1)["t2"] - 100)


def off_by_millimetres(folder):
    moved = AFFINE.copy()
    moved[0, 3] += 1.0
    save(folder / "sub-2/t2.nii.gz", volumes(1)["t2"], moved)


# Damage, options that reveal it, words of the message, and its advice (None: omit the option).
CURES = [
    (with_value_7, [], "list them in data.ignored_label_values", ["data.ignored_label_values=[7]"]),
    (with_value_7, [], "name them, or", ["data.labels.lesion=[7]"]),
    (label_of_fewer_slices, [], "or set data.resample_to", ["data.resample_to=t1"]),
    (scan_of_fewer_slices, [], "or set data.resample_to", ["data.resample_to=t1"]),
    (off_by_millimetres, [], "or set data.resample_to", ["data.resample_to=t1"]),
    (nothing_labelled, ["data.empty_labels=refuse"], "set data.empty_labels: allow", ["data.empty_labels=allow"]),
    (
        series,
        [],
        "list it as {file: ..., volumes: n} if it is a series",
        ["data.contrasts.t2={file: '{subject}/t2.nii.gz', volumes: 2}"],
    ),
    (below_zero, ["data.bias_correction=[t2]"], "remove 't2' from data.bias_correction", ["data.bias_correction=[]"]),
]


@pytest.mark.parametrize(("spoil", "shown", "text", "cure"), CURES)
def test_the_cure_of_a_scan_or_label_map_works(spoil, shown, text, cure, tmp_path):
    config = write_cohort(tmp_path, constraint_maps=None, pretraining=None, finetuning=None)
    spoil(tmp_path / "data")
    words = ["--config", config, "--set"]
    refused = run("generate_h5_pretraining", *words, *(shown or ["seed=3"]))
    assert refused.code == 2 and text in refused.said[0], refused.said
    assert run("generate_h5_pretraining", *words, *cure).code == 0


NUMBERS = [
    ("finetuning.subjects_n=[9]", r"choose at most (\d+)", "finetuning.subjects_n=[{}]"),
    ("data.splits={{folds: 3, validation: 2}}", r"choose at most (\d+)", "data.splits={{folds: 3, validation: {}}}"),
]


@pytest.mark.parametrize(("wrong", "pattern", "cure"), NUMBERS)
def test_the_number_that_a_message_advises_is_taken(wrong, pattern, cure, tmp_path):
    config = write_cohort(tmp_path)
    words = ["--config", config, "--set"]
    refused = run("generate_constraint_maps", *words, wrong.format())
    assert refused.code == 2, refused
    number = re.search(pattern, " ".join(refused.said))[1]
    assert run("generate_constraint_maps", *words, cure.format(number)).code == 0


STEPS = ["reproduce_tables", *reversed(FIRST_FOUR)]
FIRST = re.compile(r"run (\w+)\.py first")


def test_each_step_names_the_step_that_is_missing(tmp_path, uncompiled):
    """From the last step backwards: the script that a message names makes whatever is missing."""
    config, wanted, ran = write_cohort(tmp_path), ["reproduce_tables"], []
    while wanted:
        outcome = run(wanted[-1], "--config", config)
        if outcome.code == 0:
            ran.append(wanted.pop())
        else:
            wanted += [found for line in outcome.said for found in FIRST.findall(line)][:1]
        assert len(wanted) == len(set(wanted)) <= len(STEPS), outcome.said
    assert ran == list(reversed(STEPS))


def test_overwrite_is_the_cure_of_results_of_another_config(finished, tmp_path, uncompiled):
    work = tmp_path / "work"
    shutil.copytree(finished / "work", work)
    words = ["--config", finished / "tiny.yaml", "--work-dir", work, "--set", "seed=9"]
    for script in FIRST_FOUR:
        refused = run(script, *words)
        assert refused.code == 2 and any("--overwrite" in line for line in refused.said), refused.said
        assert run(script, *words, "--overwrite").code == 0
    assert run("reproduce_tables", *words).code == 0
