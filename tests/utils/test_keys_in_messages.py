"""All config keys named in messages or the documentation exist."""

import re
import typing

import pytest

from tests.bad_input.harness import ROOT, messages_of
from utils.config.reference import sections
from utils.config.schema import Config

DOTTED = re.compile(r"(?<![\w/.'-])[a-z_]+(?:\.(?:[A-Za-z_]+|<\w+>))+(?![\w/(.])")
FOLDERS = ("data", "evaluation", "losses", "models", "tools", "training", "utils")
ROOMS = ["*.py", *(f"{folder}/**/*.py" for folder in FOLDERS)]
SOURCES = [path for pattern in ROOMS for path in sorted(ROOT.glob(pattern))]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
NO_KEYS = {"data.geometry.voxel_ml", "splits.json"}  # a function named with its module, and a file


def known_keys():
    """Yield dotted config keys as tuples; None stands for any name, as in `pretraining.stages.<name>.space`."""
    for prefix, model in sections("", Config):
        above = [None if part == "<name>" else part for part in re.sub(r" \(\w+\)", "", prefix).split(".") if part]
        for key, field in model.model_fields.items():
            yield (*above, key)
            if typing.get_origin(field.annotation) is dict or "dict" in str(field.annotation):
                yield (*above, key, None)
                yield (*above, key, None, None)  # the changes in a trial


KNOWN = set(known_keys())
SECTIONS = {part for key in KNOWN for part in key[:-1] if part}


def is_known(dotted):
    """Tell whether the parts of a dotted key end a known key; X stands for a part filled in by a message."""
    parts = dotted.split(".")
    ends = (key[-len(parts) :] for key in KNOWN if len(key) >= len(parts))
    return any(end[0] and all(b is None or "X" in a or a == b for a, b in zip(parts, end, strict=True)) for end in ends)


def unknown_in(text):
    return {key for key in DOTTED.findall(text) if key.split(".")[0] in SECTIONS and not is_known(key)} - NO_KEYS


def test_what_is_known():
    right = ["data.root", "finetuning.training.mixed_precision", "training.mixed_precision", "data.splits.folds"]
    right += ["pretraining.stages.X.training", "pretraining.stages.constrained.space", "data.contrasts.t1.volumes"]
    wrong = ["network.mixed_precision", "data.roots", "finetuning.epochs", "pretraining.training.epochs", "data.mask.X"]
    assert [key for key in right + wrong if is_known(key)] == right
    assert unknown_in(f"set {wrong[0]}: true, or {right[0]}; see data/layouts/subjects.py and nibabel.load") == {
        wrong[0]
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_messages_name_keys_that_exist(path):
    assert not {key for text in messages_of(path) for key in unknown_in(text)}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_name_keys_that_exist(path):
    assert not {key for code in re.findall(r"`([^`\n]+)`", path.read_text()) for key in unknown_in(code)}


def test_messages_that_name_keys_are_found():
    found = {key for path in SOURCES for text in messages_of(path) for key in DOTTED.findall(text) if is_known(key)}
    assert {"data.root", "data.mask", "finetuning.subjects_n", "training.mixed_precision"} < found and len(found) > 50
