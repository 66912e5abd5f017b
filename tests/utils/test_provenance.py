"""Provenance of results: written and compared."""

from pathlib import Path

import pytest

from utils.checks import InputError
from utils.provenance import Provenance

MADE = Provenance("abc", 3, "def", "012", {"train_subjects": ["a", "b"]})


def test_what_is_written_is_taken_again():
    written = MADE.as_dict()
    assert written["train_subjects"] == ["a", "b"] and len(written) == 5
    MADE.refuse_other(written | {"duration_s": 3}, Path("cell"))
    assert "scans" not in Provenance("abc", 3).as_dict()


@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("config_hash", "with another config"),
        ("seed", "with another seed"),
        ("split_hash", "with another split"),
        ("scans", "from other scans"),
        ("train_subjects", "with another train subjects"),
    ],
)
def test_every_difference_is_named(key, how):
    written = MADE.as_dict()
    for other in (written | {key: "x"}, {name: value for name, value in written.items() if name != key}):
        with pytest.raises(InputError, match=f"^cell: made {how}; give --overwrite, or another --work-dir"):
            MADE.refuse_other(other, Path("cell"))
