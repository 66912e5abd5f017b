import json
import re
from pathlib import Path

import jsonschema
import pytest

from utils.config.reference import json_schema, reference, sections
from utils.config.schema import Config
from utils.config.yaml_files import read_yaml

ROOT = Path(__file__).resolve().parents[3]
FILE, SCHEMA = ROOT / "docs" / "configuration.md", ROOT / "configs" / "schema.json"
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))


def test_the_reference_is_up_to_date():
    assert FILE.read_text() == reference(), "type: python -m utils.config.reference > docs/configuration.md"


def test_every_key_is_described():
    undescribed = [
        f"{name}.{key}"
        for name, model in sections("", Config)
        for key, field in model.model_fields.items()
        if not field.description
    ]
    assert undescribed == []


def test_the_schema_for_editors_is_up_to_date():
    assert SCHEMA.read_text() == json_schema(), "type: python -m utils.config.reference schema > configs/schema.json"


def test_every_config_names_the_schema_and_follows_it(subtests):
    for path in CONFIGS:
        with subtests.test(path.name):
            first = path.read_text().splitlines()[0]
            assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == SCHEMA
            assert list(mistakes_in(as_editors_read(read_yaml(path)))) == []
    assert len(CONFIGS) > 10


@pytest.mark.parametrize(
    ("where", "value", "found"),
    [
        (("slices", "image_sizes"), [64, 64], "image_sizes"),
        (("data", "layout"), "brast", "brast"),
        (("constraint_maps", "clusters"), "many", "many"),
    ],
)
def test_the_schema_finds_mistakes(where, value, found):
    config = as_editors_read(read_yaml(ROOT / "configs" / "lgg_tcga.yaml"))
    config[where[0]][where[1]] = value
    (mistake,) = mistakes_in(config)
    assert mistake.path[0] == where[0]
    assert found in mistake.message


def mistakes_in(config):
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).iter_errors(config)


def as_editors_read(value):
    """Read as editors do, which use YAML 1.2, where 1e-3 is a number."""
    if isinstance(value, dict):
        return {key: as_editors_read(part) for key, part in value.items()}
    if isinstance(value, list):
        return [as_editors_read(part) for part in value]
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value) else value
