"""Arbitrary configs either load, or every mistake is one line of text."""

import contextlib
import copy

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.utils.config.test_load import SMALL
from utils.checks import InputError
from utils.config.load import load_config

FIXED = {"derandomize": True, "deadline": None, "suppress_health_check": list(HealthCheck)}
CONTENT = yaml.safe_load(SMALL)
WORDS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    "-",
    "- ",
    ",",
    "&a ",
    "*a",
    "!!int ",
    "!!binary ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
]
WORDS += [
    "\n",
    "\t",
    "  ",
    "<<: ",
    "%YAML 1.1",
    "---\n",
    "...",
    "\\",
    "\x00",
    "\ufeff",
    "é",
    "~",
    "no",
    "1e-3",
    "010",
    "1:2",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.sampled_from(
        ["constrained", "global", "local", "regression", "t1", "{subject}/x", "kidney", "10", "1e-3", "../x"]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "config.yaml"


def load(path, overrides=()):
    """Load a config as scripts do; a config that loads can be written and hashed, as in `open_run` and the steps."""
    try:
        config = load_config(path, overrides)
    except InputError as error:
        assert error.lines and all(line and len(line.splitlines()) == 1 for line in error.lines)
        return
    yaml.safe_dump(config.plain())
    config.percentiles() if config.constraint_maps or config.slices else None
    config.hash_of_maps()
    if config.slices:
        config.hash_of_slices()
        for stage in config.pretraining.stages if config.pretraining else ():
            config.hash_of_stage(stage)


def places(content, above=()):
    """Return all places in nested dictionaries and lists, as tuples of keys."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from places(value, (*above, key))


PLACES = list(places(CONTENT))


@settings(max_examples=500, **FIXED)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES | st.just("delete")), min_size=1, max_size=3))
def test_values_that_are_something_else(path, changes):
    content = copy.deepcopy(CONTENT)
    for (*above, last), value in changes:
        inner = content
        with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier change removed the place
            for key in above:
                inner = inner[key]
            if value == "delete":
                del inner[last]
            else:
                inner[last] = value
    path.write_text(yaml.dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    load(path)


@settings(max_examples=400, **FIXED)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(WORDS) | st.text(max_size=3), st.integers(0, 6)), max_size=6)
)
def test_text_with_signs_put_in_and_taken_out(path, edits):
    text = SMALL
    for share, word, length in edits:
        place = int(share * len(text))
        text = text[:place] + word + text[place + length :]
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    load(path)


@settings(max_examples=150, **FIXED)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-16")))
def test_bytes(path, content):
    path.write_bytes(content)
    load(path)


@settings(max_examples=200, **FIXED)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([".".join(map(str, place)) for place in PLACES]) | st.text(max_size=6), VALUES.map(str)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_overrides(path, overrides):
    path.write_text(SMALL)
    load(path, [f"{key}={value}" for key, value in overrides])
