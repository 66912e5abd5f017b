"""Configs that cannot be read or do not mean what their author thinks, and a few that only look wrong."""

import itertools
import os

import pytest

from tests.bad_input.harness import assert_refused
from tests.cohort import write_cohort
from utils.config.load import load_config

SOUND = """
name: tiny
work_dir: {work}
data:
  root: {data}
  contrasts: {{t1: "{{subject}}/t1.nii.gz", t2: "{{subject}}/t2.nii.gz"}}
  label: "{{subject}}/label.nii.gz"
  labels: {{kidney: [1]}}
  splits: {{train: [sub-1], val: [sub-2], test: [sub-3]}}
constraint_maps: {{contrasts: [t1, t2]}}
slices: {{image_size: [16, 16]}}
network: {{filters: [2, 4]}}
finetuning:
  contrasts: {{t1: [t1]}}
  inits: [random]
  subjects_n: [1]
  training: {{epochs: 1, batch_size: 2, learning_rate: 1e-3}}
"""
UNREADABLE = "{config}: not a readable YAML file: "
RATE = "{config}: finetuning.training.learning_rate: "


def instead(old, new):
    def spoil(text):
        assert old in text
        return text.replace(old, new)

    return spoil


def more(line):
    return lambda text: text + line


CASES = {
    "unknown key": (
        instead("filters: [2, 4]", "filter: [2, 4]"),
        "{config}: network.filter: unknown key; did you mean 'filters'?",
    ),
    "unknown section": (more("finetunin: {}\n"), "{config}: finetunin: unknown key; did you mean 'finetuning'?"),
    "key twice": (more("name: other\n"), UNREADABLE + "line 18: key 'name' appears twice; delete one"),
    "key twice, inside": (
        instead("filters: [2, 4]", "filters: [2, 4], filters: [2]"),
        UNREADABLE + "line 12: key 'filters' appears twice; delete one",
    ),
    "text for a number": (
        instead("batch_size: 2", "batch_size: two"),
        "{config}: finetuning.training.batch_size: "
        "Input should be a valid integer, unable to parse string as an integer (found 'two')",
    ),
    "list for a section": (
        instead("{filters: [2, 4]}", "[2, 4]"),
        "{config}: network: expected keys with values (found [2, 4])",
    ),
    "negative": (
        instead("batch_size: 2", "batch_size: -2"),
        "{config}: finetuning.training.batch_size: Input should be greater than 0 (found -2)",
    ),
    "infinite": (instead("1e-3", ".inf"), RATE + "Input should be a finite number (found inf)"),
    "not a number": (instead("1e-3", ".nan"), RATE + "Input should be a finite number (found nan)"),
    "1e-3 with a typo": (
        instead("1e-3", "1e--3"),
        RATE + "Input should be a valid number, unable to parse string as a number (found '1e--3')",
    ),
    "no for a number": (
        instead("batch_size: 2", "batch_size: no"),
        "{config}: finetuning.training: batch_size: found no (true or false), expected another value",
    ),
    "yes in a list of numbers": (
        instead("filters: [2, 4]", "filters: [2, yes]"),
        "{config}: network: filters: found yes (true or false), expected another value",
    ),
    "yes among label values": (
        instead("kidney: [1]", "kidney: [yes]"),
        "{config}: data: labels: found yes (true or false), expected another value",
    ),
    "no for a subject": (
        instead("[sub-1]", "[no]"),
        "{config}: data.splits.train.0: expected text (found False); put it in quotes",
    ),
    "number for a subject": (
        instead("[sub-1]", "[007]"),
        UNREADABLE + "line 9: 007 would be read as 7; write the number out, or quote text",
    ),
    "date for a subject": (
        instead("[sub-1]", "[2024-01-31]"),
        "{config}: data.splits.train.0: expected text (found 2024-01-31); put it in quotes",
    ),
    "010, which is 8": (
        more("seed: 010\n"),
        UNREADABLE + "line 18: 010 would be read as 8; write the number out, or quote text",
    ),
    "12:30, which is 750": (
        more("seed: 12:30\n"),
        UNREADABLE + "line 18: 12:30 would be read as 750; write the number out, or quote text",
    ),
    "tab": (
        instead("  contrasts: {t1: [t1]}", "\tcontrasts: {t1: [t1]}"),
        UNREADABLE + "line 14, column 1: while scanning for the next token found character '\\t' that cannot start "
        "any token; indent with spaces",
    ),
    "billion laughs": (
        lambda text: (
            "a: &a [lol, lol]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghi"))
        ),
        UNREADABLE + "line 2: aliases are not allowed; write it out",
    ),
    "alias of itself": (more("crops: &c {size: *c}\n"), UNREADABLE + "line 18: aliases are not allowed; write it out"),
    "merged sections": (
        more("<<: {seed: 3}\n"),
        UNREADABLE + "line 18, column 1: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:merge'; write it out",
    ),
    "code": (
        more("seed: !!python/object/apply:os.system ['touch hacked']\n"),
        UNREADABLE + "line 18, column 7: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'; a config is data, never code",
    ),
    "nested without end": (
        more("crops: " + "[" * 20_000),
        UNREADABLE + "line 18: nested more than 30 levels deep",
    ),
    "list as a key": (more("? [1]\n: 2\n"), UNREADABLE + "line 18: a list cannot be a key; keys are text"),
    "number as a key": (more("7: 2\n"), "{config}: 7: keys are text; put it in quotes, or delete it"),
    "a date that is none": (
        more("seed: 2024-13-45\n"),
        UNREADABLE + "line 18: 2024-13-45 is not a valid timestamp; put text in quotes",
    ),
    "a number of 5000 digits": (
        more(f"seed: {'9' * 5000}\n"),
        UNREADABLE + f"line 18: {'9' * 40}... is not a valid int; put text in quotes",
    ),
    "bracket not closed": (
        more("crops: {size: [1, 2\n"),
        UNREADABLE + "line 19, column 1: while parsing a flow sequence expected ',' or ']', but got '<stream end>'",
    ),
    "two documents": (
        more("---\nname: second\n"),
        UNREADABLE + "line 18, column 1: expected a single document in the stream but found another document",
    ),
    "empty": (lambda text: "", "{config}: is empty, expected sections such as 'data:' (see configs/)"),
    "comment only": (lambda text: "# later\n", "{config}: is empty, expected sections such as 'data:' (see configs/)"),
    "list at top level": (
        lambda text: "- name: tiny\n",
        "{config}: holds a list, expected sections such as 'data:' (see configs/)",
    ),
    "text at top level": (
        lambda text: "tiny",
        "{config}: holds text, expected sections such as 'data:' (see configs/)",
    ),
    "10 MB": (
        more("# a line of padding\n" * 525_000),
        "{config}: has 10254 KiB, expected a config of at most 256 KiB",
    ),
    "Latin-1": (
        lambda text: (text + "# Größe\n").encode("latin-1"),
        UNREADABLE + "byte 0xf6 at position <any> is not UTF-8; save it as UTF-8",
    ),
    "UTF-16": (
        lambda text: text.encode("utf-16"),
        UNREADABLE + "byte 0xff at position 1 is not UTF-8; save it as UTF-8",
    ),
    "zeros": (
        lambda text: bytes(100),
        UNREADABLE + "character 1 is not allowed in YAML (special characters are not allowed)",
    ),
    "line break in a path": (
        instead("root: ", 'root: "a\\nb" #'),
        "{config}: data.root: has characters that cannot be printed, such as a line break (found 'a\\nb')",
    ),
    "name with a path in it": (
        instead("name: tiny", "name: ../tiny"),
        "{config}: name: String should match pattern '^[A-Za-z0-9][A-Za-z0-9_-]*$' (found '../tiny')",
    ),
    "contrast named with a path": (
        instead("{t1: [t1]}", "{../../t1: [t1]}"),
        "{config}: finetuning.contrasts.../../t1: "
        "String should match pattern '^[A-Za-z0-9][A-Za-z0-9_-]*$' (found '../../t1')",
    ),
    "volume of a series named like a contrast": (
        instead('t2: "', 't1_2: {file: "{subject}/e", volumes: 2}, t1_2_2: "{subject}/x", t2: "'),
        "{config}: data.contrasts: 't1_2_2' is a contrast, and a volume of a series too; give one of them another name",
    ),
    "label value in two classes": (
        instead("kidney: [1]", "kidney: [1], liver: [1]"),
        "{config}: data: labels: value 1 is named twice; a voxel has one class",
    ),
    "contrast that is none": (
        instead("[t1, t2]}\nslices", "[t1, t3]}\nslices"),
        "{config}: constraint_maps.contrasts: 't3' is not one of data.contrasts (t1, t2)",
    ),
    "number for a path": (
        instead('label: "{subject}/label.nii.gz"', "label: 3"),
        "{config}: data.label: expected text (found 3); put it in quotes",
    ),
    "series without length": (
        instead('t2: "{subject}/t2.nii.gz"', 't2: {file: "{subject}/t2.nii.gz"}'),
        "{config}: data.contrasts.t2.volumes: Field required",
    ),
}


@pytest.fixture
def config(tmp_path):
    write_cohort(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(SOUND.format(work=tmp_path / "work", data=tmp_path / "data"))
    return path


def spoil(config, name):
    changed = CASES[name][0](config.read_text())
    config.write_bytes(changed if isinstance(changed, bytes) else changed.encode())


@pytest.mark.parametrize("name", CASES)
def test_a_bad_config_is_refused(name, config, tmp_path):
    spoil(config, name)
    line = CASES[name][1]
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], [line], config=config)


def test_all_mistakes_of_a_config_are_listed_at_once(config, tmp_path):
    text = config.read_text()
    config.write_text(text.replace("filters", "filter").replace("batch_size: 2", "batch_size: 0") + "sed: 3\n")
    lines = [
        "{config}: network.filter: unknown key; did you mean 'filters'?",
        "{config}: finetuning.training.batch_size: Input should be greater than 0 (found 0)",
        "{config}: sed: unknown key; did you mean 'seed'?",
    ]
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], lines, config=config)


def replace_by(make):
    def spoil(config):
        config.unlink()
        make(config)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda config: config.unlink(), "{config}: no such config file"),
        (replace_by(lambda config: config.mkdir()), "{config}: is a folder, expected a YAML file"),
        (replace_by(os.mkfifo), "{config}: is not a regular file, expected a YAML file"),
        (
            replace_by(lambda config: config.symlink_to("/nowhere.yaml")),
            "{config}: is a link to '/nowhere.yaml', which does not exist",
        ),
    ],
    ids=["absent", "folder", "pipe", "link to nowhere"],
)
def test_a_config_that_is_no_file(spoil, line, config, tmp_path):
    spoil(config)
    assert_refused(tmp_path, "generate_constraint_maps", ["--config", config], [line], config=config)


@pytest.mark.parametrize("text", ["\ufeff", "%YAML 1.1\n---\n"], ids=["byte order mark", "directive"])
def test_what_only_looks_wrong_is_read(text, config):
    expected = load_config(config)
    assert expected.finetuning.training.learning_rate == 0.001
    config.write_text(text + config.read_text())
    assert load_config(config) == expected
    config.write_bytes(config.read_text().replace("\n", "\r\n").encode())
    assert load_config(config) == expected
