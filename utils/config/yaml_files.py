"""Safe YAML: plain data only, without repeated keys, aliases or hidden conversions, and with bounded work."""

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from utils.checks import InputError
from utils.texts import NotUtf8, read_text

# A megabyte of YAML takes ten seconds to read; the largest config here, with 1,251 subjects by name, has 30 KB.
LARGEST_BYTES = 256 * 1024
DEEPEST = 30  # levels; a config has six
SHOWN = 40  # characters of a value in a message
HINTS = {
    "'\\t'": "; indent with spaces",
    "yaml.org,2002:python": "; a config is data, never code",
    "yaml.org,2002:merge": "; write it out",
}


def read_yaml(path):
    """Read a config file into plain data.

    Args:
        path: YAML file, UTF-8, at most 256 KiB.

    Returns:
        A dictionary.

    Raises:
        InputError: One line that names the file and, if known, the line in it.
    """
    path = Path(path)
    try:
        content = parse_yaml(_text_of(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not a readable YAML file: {printable(error)}") from None
    if content is None:
        raise InputError(f"{path}: is empty, expected sections such as 'data:' (see configs/)")
    if not isinstance(content, dict):
        what = {list: "a list", str: "text"}.get(type(content), f"a {type(content).__name__}")
        raise InputError(f"{path}: holds {what}, expected sections such as 'data:' (see configs/)")
    return content


def parse_yaml(text):
    """Convert YAML text to plain data: dictionaries, lists, text, numbers, dates, true and false, None.

    Raises:
        yaml.YAMLError: With one line of text as its only argument.
    """
    try:
        return yaml.load(text, _PlainLoader)  # noqa: S506 (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(part for part in (error.context, error.problem) if part)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        hint = next((hint for sign, hint in HINTS.items() if sign in problem), "")
        raise yaml.YAMLError(" ".join(f"{where}{problem}{hint}".split())) from None
    except yaml.reader.ReaderError as error:
        raise yaml.YAMLError(f"character {error.position + 1} is not allowed in YAML ({error.reason})") from None


def printable(words):
    """Return text for one line of a message, with line breaks and non-printing characters escaped."""
    text = str(words)
    return text if text.isprintable() else ascii(text)


def _text_of(path):
    try:
        if path.is_symlink() and not path.exists():
            raise InputError(f"{path}: is a link to '{path.readlink()}', which does not exist")
        if not path.exists():
            raise InputError(f"{path}: no such config file")
        if not path.is_file():
            what = "a folder" if path.is_dir() else "not a regular file"
            raise InputError(f"{path}: is {what}, expected a YAML file")
        if (size := path.stat().st_size) > LARGEST_BYTES:
            limit = f"{LARGEST_BYTES // 1024} KiB"
            raise InputError(f"{path}: has {size / 1024:.0f} KiB, expected a config of at most {limit}")
        return read_text(path)
    except NotUtf8 as error:
        raise InputError(f"{path}: not a readable YAML file: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r}: is not a file name ({error})") from None  # a NUL character


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses hidden values, silent conversions and excessive memory use."""

    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {line}: aliases are not allowed; write it out")
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.YAMLError(f"line {line}: nested more than {DEEPEST} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, Hashable):
                raise yaml.YAMLError(f"line {line}: a {type(key).__name__} cannot be a key; keys are text")
            if key in seen:
                raise yaml.YAMLError(f"line {line}: key '{key}' appears twice; delete one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_object(self, node, deep=False):
        """Build one value; an invalid number or date raises a YAMLError that names its line."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError, KeyError, AttributeError, IndexError):
            kind = node.tag.rpartition(":")[2]
            shown = node.value if isinstance(node.value, str) else f"a {node.id}"
            shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {shown} is not a valid {kind}; put text in quotes") from None

    def construct_plain_number(self, node):
        """Build a number; refuse `010`, which YAML 1.1 would read as 8, and `1:30`, which it would read as 90."""
        text, is_int = self.construct_scalar(node), node.tag.endswith(":int")
        value = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        if ":" in text or is_int and re.fullmatch(r"[-+]?0[0-9_]+", text):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: {text} would be read as {value}; write the number out, or quote text")
        return value


for _kind in ("int", "float"):
    _PlainLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _PlainLoader.construct_plain_number)
