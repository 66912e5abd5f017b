import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cohort import write_cohort, write_config
from utils.checks import InputError
from utils.config.load import load_config
from utils.paths import existing_form, expanded

STAGE = "pretraining.stages.global.warm_start"
# Path in a config -> where a shell would go.
PATHS = ["~", "~/runs/x", "$STUDY/x", "${STUDY}x/y", "/a/$STUDY", "plain/x", "a~b", "a/~", "$STUDY-$OTHER"]


@pytest.fixture
def shell(monkeypatch, tmp_path):
    """Set up a home folder, two variables and an unset one; the current folder holds what the mistake would create."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STUDY", "kidneys")
    monkeypatch.setenv("OTHER", "livers")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", PATHS)
def test_a_path_means_what_it_means_in_a_shell(shell, path):
    (shell / "~").mkdir()  # as created by a program that does not expand it
    told = subprocess.run(["/bin/sh", "-c", f"printf %s {path}"], capture_output=True, text=True, check=True).stdout
    assert expanded(path) == told
    assert expanded(Path(path)) == Path(told)


@pytest.mark.parametrize("path", ["$UNSET/x", "a/${UNSET}", "~nobody-of-this-name/x"])
def test_what_has_no_meaning_is_refused(shell, path):
    with pytest.raises(ValueError, match=r"UNSET is not set|no home folder '~nobody-of-this-name'"):
        expanded(path)


def test_a_folder_with_a_dollar_in_its_name_can_be_read(shell):
    (shell / "A$UNSET").mkdir()
    assert expanded("A$UNSET") == "A$UNSET"
    assert expanded("A$1$ $^") == "A$1$ $^"  # not variable names


@pytest.mark.parametrize("key", ["work_dir", "data.root", "data.splits", STAGE])
def test_every_path_of_a_config_is_expanded(shell, key):
    config = write_cohort(shell)
    found = load_config(config, [f"{key}=~/$STUDY/x.npz"]).plain()
    for part in key.split("."):
        found = found[part]
    assert found == str(shell / "home" / "kidneys" / "x.npz")
    with pytest.raises(InputError, match=f"{key}: the environment variable UNSET is not set"):
        load_config(config, [f"{key}=$UNSET/x.npz"])


def test_the_command_line_is_expanded_too(shell):
    assert load_config(write_cohort(shell), work_dir="~/x").work_dir == shell / "home" / "x"


def test_a_path_is_found_in_the_form_in_which_it_lies_on_disk(tmp_path):
    (tmp_path / "Jose\u0301").mkdir()
    assert existing_form(tmp_path / "Jos\u00e9") == tmp_path / "Jose\u0301"
    assert existing_form(tmp_path / "R\u00e9my") == tmp_path / "R\u00e9my"


def test_a_config_that_the_suite_wrote_loads_again_with_a_path_expanded(shell):
    config = load_config(write_config(shell, work_dir="~/runs"))
    (shell / "resolved.yaml").write_text(yaml.safe_dump(config.plain()))
    assert load_config(shell / "resolved.yaml") == config
