"""Colours of the classes: the default, those of a config, and that they decide nothing else."""

import math

import pytest
import yaml

from tests.config_hashes import ROOT, hashes_of
from utils.checks import InputError
from utils.config.load import load_config
from utils.label_colours import PALETTE, Label, legend_of, numbered, rgb_of

CONFIG = ROOT / "configs/renal_demo.yaml"
# Viénot, Brettel and Mollon (1999): linear RGB as seen by protanopes and deuteranopes.
SEEN_BY = {
    "protan": ((0.1124, 0.8876, 0.0), (0.1124, 0.8876, 0.0), (0.0040, -0.0040, 1.0)),
    "deutan": ((0.2927, 0.7073, 0.0), (0.2927, 0.7073, 0.0), (-0.0223, 0.0223, 1.0)),
}


def lab(colour, seen_by=None):
    """CIELAB (D65) of a colour, as seen with some colour vision; by the formulas of CIE 15 and IEC 61966-2-1."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (p / 255 for p in rgb_of(colour))]
    if seen_by:
        linear = [sum(w * v for w, v in zip(row, linear, strict=True)) for row in SEEN_BY[seen_by]]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(w * v for w, v in zip(row, linear, strict=True)) for row in to_xyz]
    x, y, z = (
        t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116
        for t in (v / white for v, white in zip(xyz, (0.9505, 1.0, 1.089), strict=True))
    )
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


@pytest.mark.parametrize("seen_by", [None, *SEEN_BY])
def test_the_first_seven_colours_are_far_apart_for_every_colour_vision(seen_by):
    seen = [lab(colour, seen_by) for colour in PALETTE[:7]]
    assert min(math.dist(a, b) for i, a in enumerate(seen) for b in seen[:i]) > 10  # CIE76; 2.3 is just noticeable


def test_colours_repeat_only_beyond_the_palette():
    assert len(set(PALETTE)) == len(PALETTE) == 21 and "#000000" not in PALETTE
    many = legend_of(numbered(f"l{n}" for n in range(30)))
    assert len({label.colour for label in many[:21]}) == 21 and many[21].colour == many[0].colour


def test_every_class_has_its_number_and_the_colour_of_that_number():
    found = legend_of({"b": 3, "a": 1})
    assert found == [Label(1, "a", PALETTE[0]), Label(3, "b", PALETTE[2])]
    assert found[0].rgb == (0xF0, 0xE4, 0x42)


def test_a_chosen_colour_is_nobody_elses_and_the_others_keep_theirs():
    names = numbered(["a", "b", "c"])
    assert [label.colour for label in legend_of(names, {"a": "#123456"})] == ["#123456", *PALETTE[1:3]]
    taken = [label.colour for label in legend_of(names, {"a": PALETTE[1]})]
    assert taken[0] == PALETTE[1] and taken[2] == PALETTE[2] and len(set(taken)) == 3
    swapped = {"a": PALETTE[1], "b": PALETTE[0]}
    assert [label.colour for label in legend_of(names, swapped)] == [PALETTE[1], PALETTE[0], PALETTE[2]]


def with_colours(tmp_path, text):
    """The demo's config with `label_colours`, as a user types it."""
    path, head = tmp_path / "demo.yaml", "data:\n"
    path.write_text(CONFIG.read_text().replace(head, f"{head}  label_colours: {text}\n", 1))
    return path


def first_labels():
    return list(yaml.safe_load(CONFIG.read_text())["data"]["labels"])[:2]


def test_colours_of_a_config_change_no_hash(tmp_path):
    name, other = first_labels()
    path = with_colours(tmp_path, f"{{{name}: '#12ab34'}}")
    config = load_config(path)
    assert config.data.legend()[0] == Label(1, name, "#12AB34") and config.data.legend()[1].name == other
    assert hashes_of(config) == hashes_of(load_config(CONFIG))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{NAME: #E69F00\n   }", r"no colour; quote it, such as '#E69F00', because # starts a comment in YAML"),
        ("{NAME: red}", "data.label_colours.NAME: .*#"),
        ("{NAME: '#12345'}", "data.label_colours.NAME: .*#"),
        ("{tumor: '#123456'}", "label_colours: 'tumor' is not one of labels"),
        ("{NAME: '#abcdef', OTHER: '#ABCDEF'}", "are both #ABCDEF; give them different colours"),
    ],
)
def test_unusable_colours_are_refused(tmp_path, text, said):
    name, other = first_labels()
    text, said = (words.replace("NAME", name).replace("OTHER", other) for words in (text, said))
    with pytest.raises(InputError, match=said):
        load_config(with_colours(tmp_path, text))
