"""The config reference and the JSON Schema for editors, both generated from the config classes.

python -m utils.config.reference > docs/configuration.md
python -m utils.config.reference schema > configs/schema.json
"""

import json
import sys
import typing

from pydantic_core import PydanticUndefined

from utils.config.schema import Config
from utils.config.sections import ADDED, Section

INTRODUCTION = """# Config reference

Generated from the classes in `utils/config/` by `python -m utils.config.reference > docs/configuration.md`; a test
checks it. One YAML file per dataset holds every value that affects a result. Unknown and repeated keys are errors. Any
value can be overridden on the command line: `--set finetuning.repeats=5 data.root=/scans`. In `work_dir`, `data.root`,
`data.splits` and `warm_start`, a leading `~` and `$NAME` are expanded as in a shell; a variable that is not set is an
error. """


def reference():
    """Return the reference as Markdown."""
    parts = [INTRODUCTION]
    for name, model in sections("", Config):
        parts.append(f"## {f'`{name}`' if name else 'Top level'}\n\n{' '.join(model.__doc__.split())}\n")
        parts.append("| key | type | default | meaning |\n|---|---|---|---|")
        parts += [_row(key, field) for key, field in model.model_fields.items()]
        parts.append("")
    return "\n".join(parts)


def json_schema():
    """Return the JSON Schema of a config as text; editors complete and check YAML files with it."""
    return json.dumps(_without_titles(Config.model_json_schema()), indent=1, ensure_ascii=False) + "\n"


def _without_titles(schema):
    """Remove the titles, which repeat the keys, and the marks of keys added later."""
    if isinstance(schema, list):
        return [_without_titles(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_titles(part)
        for key, part in schema.items()
        if not (key == "title" and isinstance(part, str)) and key not in ADDED
    }


def sections(prefix, model):
    """Yield `(dotted name, model)` of a section and of every section inside it."""
    yield prefix.removesuffix("."), model
    for key, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        for part in inner:
            is_dictionary = typing.get_origin(field.annotation) is dict
            mark = f"{key}.<name>" if is_dictionary else key
            kind = f" ({part.__name__})" if len(inner) > 1 or is_dictionary and key == "contrasts" else ""
            yield from sections(f"{prefix}{mark}{kind}.", part)


def _models(annotation):
    if isinstance(annotation, type):
        if issubclass(annotation, Section):
            yield annotation
        return
    for part in typing.get_args(annotation):
        yield from _models(part)


def _row(key, field):
    default = "required"
    if not field.is_required():
        value = field.default_factory() if field.default is PydanticUndefined else field.default
        default = "see its section" if isinstance(value, Section) else f"`{_plain(value)}`"
    return f"| `{key}` | {_type(field.annotation)} | {default} | {field.description or ''} |"


def _plain(value):
    """Return a value as written in a YAML file."""
    if isinstance(value, float):
        value = round(value, 4)
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _type(annotation):
    """Return a type in the words of a config file."""
    origin, inner = typing.get_origin(annotation), [a for a in typing.get_args(annotation) if not _is_constraint(a)]
    if annotation is typing.Any:
        return "any value"
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin in (list, tuple):
        return "list of " + _type(inner[0])
    if origin is dict:
        return "name: " + _type(inner[1])
    if inner:
        return " or ".join(dict.fromkeys(_type(part) for part in inner))
    words = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return "section" if is_section else words.get(annotation, "text")


def _is_constraint(part):
    return not isinstance(part, type) and typing.get_origin(part) is None and not isinstance(part, str)


if __name__ == "__main__":
    print(json_schema() if sys.argv[1:] == ["schema"] else reference(), end="")
