"""docs/data.md: every example is a valid config, and every layout has one."""

import re
import typing
from pathlib import Path

import pytest
import yaml

from data.layouts.subjects import FINDERS
from utils.config.data import DataSection
from utils.config.evaluation import EvaluationSection

TEXT = (Path(__file__).resolve().parents[1] / "docs/data.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["data"].get("layout", "pattern"))
def test_an_example_is_a_config(example):
    data = DataSection.model_validate(example["data"])
    regions = EvaluationSection.model_validate(example.get("evaluation", {})).regions
    assert {name for members in regions.values() for name in members} <= set(data.labels)


def test_every_layout_has_an_example_and_a_finder():
    layouts = set(typing.get_args(DataSection.model_fields["layout"].annotation))
    assert layouts == set(FINDERS) == {example["data"].get("layout", "pattern") for example in EXAMPLES}
    assert [line for line in TEXT.splitlines() if len(line) > 120] == []
