"""Reading of configs and overrides: all mistakes are listed at once, with hints for typos."""

import datetime
import difflib
import reprlib
import types
import typing

import yaml
from pydantic import BaseModel, ValidationError

from utils.checks import InputError
from utils.config.schema import Config
from utils.config.sections import KINDS
from utils.config.yaml_files import parse_yaml, printable, read_yaml

SHOWN = 60  # characters of a value in a message


def load_config(path, overrides=(), work_dir=None):
    """Read, override and check a config.

    Args:
        path: YAML file.
        overrides: Strings `key.path=value`; the value is read as YAML.
        work_dir: Replaces `work_dir` when given.

    Returns:
        A `Config`; relative `data.root` and `work_dir` are relative to the current folder.

    Raises:
        InputError: One line per mistake, all of them at once.
    """
    content = read_yaml(path)
    for override in overrides:
        _apply(content, override)
    if work_dir is not None:
        content["work_dir"] = str(work_dir)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise InputError([f"{path}: {line}" for line in explain(error, Config)]) from None


def _apply(content, override):
    key, equals, value = override.partition("=")
    *sections, last = key.strip().split(".")
    shown = printable(override)
    if not equals or not last:
        raise InputError(f"--set {shown}: expected key.path=value, such as finetuning.repeats=5")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise InputError(f"--set {shown}: '{printable(section)}' is a single value, not a section")
    try:
        content[last] = parse_yaml(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {printable(key)}: {printable(error)}") from None


def explain(error, schema):
    """Yield one line per mistake in a config, with a suggestion for each unknown key."""
    for mistake in error.errors():
        # Pydantic adds the kinds of stages and of entries in `data`, and marks keys; these words are not in the file.
        place = [
            part for n, part in enumerate(mistake["loc"]) if mistake["loc"][:2] != ("pretraining", "stages") or n != 3
        ]
        where = printable(".".join(str(part) for part in place if part not in (*KINDS, "[key]")))
        for line in _reason(mistake, schema).splitlines():
            yield f"{where}: {line}" if where else line


def _reason(mistake, schema):
    reason, found = mistake["msg"].removeprefix("Value error, "), mistake["input"]
    if mistake["type"] == "extra_forbidden":
        known = _keys_at(schema, mistake["loc"][:-1])
        near = difflib.get_close_matches(str(mistake["loc"][-1]), known, n=1)
        return "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}")
    if mistake["type"] == "invalid_key":
        return "keys are text; put it in quotes, or delete it"
    if mistake["type"] == "string_type" and isinstance(found, bool | int | float | datetime.date):
        return f"expected text (found {_shown(found)}); put it in quotes"
    if mistake["type"] in ("model_type", "dict_type"):
        return f"expected keys with values (found {_shown(found)})"
    if mistake["type"] == "missing" or isinstance(found, dict | BaseModel):
        return reason
    return f"{reason} (found {_shown(found)})"


def _shown(value):
    """Return a value for a message, shortened if it is long."""
    text = str(value) if isinstance(value, datetime.date) else reprlib.repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _keys_at(schema, path):
    """Return the field names of the section to which the location of a pydantic error points."""
    sections = [schema]
    for part in path:
        inner = [m for s in sections if part in s.model_fields for m in _models_in(s.model_fields[part].annotation)]
        # A part that is not a field is a key of a dictionary, or the tag of one of several kinds.
        chosen = [KINDS[part]] if KINDS.get(part) else [s for s in sections if _tag(s) == part]
        sections = inner or chosen or sections
    return sorted({name for section in sections for name in section.model_fields})


def _tag(model):
    method = model.model_fields.get("method")
    return typing.get_args(method.annotation)[0] if method else None


def _models_in(annotation):
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
