from pathlib import Path

from utils.reference import reference, sections
from utils.schema import Config

FILE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_reference_is_up_to_date():
    assert FILE.read_text() == reference(), "type: python -m utils.reference > docs/configuration.md"


def test_every_key_is_described():
    undescribed = [
        f"{name}.{key}"
        for name, model in sections("", Config)
        for key, field in model.model_fields.items()
        if not field.description
    ]
    assert undescribed == []
