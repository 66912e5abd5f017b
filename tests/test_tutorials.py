"""docs/tutorials: the bash blocks of each page run unchanged and in order, and give the output and files shown."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reliability.kills import LIBRARIES
from tests.warm import warm_python

ROOT = Path(__file__).resolve().parents[1]
SNAKEMAKE = ".venv-grid/bin/snakemake"
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "KERAS_BACKEND"))}
ENVIRONMENT["TF_CPP_MIN_LOG_LEVEL"] = "3"
# These start as new processes; the others are forks of a Python that has loaded their libraries.
FRESH = ("-m\\ tools.doctor*", "predict.py*")  # patterns of the words after `python`
COMMANDS = """
set -euo pipefail
python() {{ case "$*" in {fresh}) {python} "$@";; *) {warm} "$@";; esac; }}
"""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """Return a copy of the repository as it is after the installation, to run in."""
    folder = tmp_path_factory.mktemp("tutorials") / "suite"
    left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "results", "benchmarks", "tests")
    shutil.copytree(ROOT, folder, ignore=left_out)
    for name in (".venv", ".venv-grid"):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture(scope="module")
def commands():
    """Yield bash functions that define `python` for the blocks."""
    with warm_python(sys.executable, LIBRARIES, ENVIRONMENT) as warm:
        yield COMMANDS.format(fresh="|".join(FRESH), python=shlex.quote(sys.executable), warm=shlex.join(warm))


def run(block, commands, folder):
    """Run a block in bash, stopping at the first command that fails; returns its output."""
    words = ["bash", "-c", f"{commands}\n{block}"]
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, f"exit code {done.returncode} of\n{block}\n{printed}"
    return printed


def squeezed(text):
    return " ".join(text.split())


@each_page
def test_a_page_does_what_it_says(page, suite, commands):
    text, printed, shown = page.read_text(encoding="utf-8"), "", 0
    if SNAKEMAKE in text and not (ROOT / SNAKEMAKE).exists():
        pytest.skip("Snakemake is not installed; type: make install-grid")
    for language, block in FENCED.findall(text):
        if language == "bash":
            printed = squeezed(run(block, commands, suite))
        elif language == "text":  # lines of the output of the commands before it
            missing = [line for line in block.splitlines() if squeezed(line) not in printed]
            assert missing == [], printed
            shown += 1
    results = re.findall(r"`(runs/[^`\s]+)`", FENCED.sub("", text))
    assert results or shown, "the page names no result and shows no output"
    assert [result for result in results if not list(suite.glob(result))] == []
