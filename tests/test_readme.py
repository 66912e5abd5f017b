"""Commands, options, links and paths in the documentation and in docstrings exist."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from utils.config.data import DataSection
from utils.config.schema import Config

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
TOOLS = sorted(f"tools.{path.stem}" for path in (ROOT / "tools").glob("[a-z]*.py"))
EARLIER = {f"{name.partition('.')[2]}.py": name for name in TOOLS}  # names used in committed results
PLACES = ("*.md", "docs/*.md", "docs/tutorials/*.md", "benchmarks/*.md", "results/*/README.md")
FOLDERS = "configs|docs|results|benchmarks|data|evaluation|losses|models|tools|training|utils|papers|profiles|tests"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))


def commands():
    texts = [(ROOT / "README.md").read_text(), *(path.read_text() for path in (ROOT / "results").glob("*/README.md"))]
    texts += [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    texts += [file_of(name).read_text().split('"""')[1] for name in [*SCRIPTS, *TOOLS]]
    pattern = r"\b(\w+\.py|tools\.\w+)( [^`\n|#)]*)?"
    return sorted({match[0].strip() for text in texts for match in re.finditer(pattern, text)})


def file_of(script):
    return ROOT / (script if script.endswith(".py") else f"{script.replace('.', '/')}.py")


def words_of(script):
    """Return the words that follow `python` to run a script."""
    return [ROOT / script] if script.endswith(".py") else ["-m", script]


@pytest.fixture(scope="module")
def help_texts():
    texts = {}
    for name in [*SCRIPTS, *TOOLS]:
        started = time.monotonic()
        command = [sys.executable, *words_of(name), "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        texts[name] = (done.stdout, time.monotonic() - started)
    return texts


def test_every_option_in_the_documentation_exists(help_texts):
    checked = 0
    for command in commands():
        script, *words = command.split()
        for option in (word for word in words if word.startswith("--")):
            name = EARLIER.get(script, script)
            assert name in help_texts, command
            assert option.split("=")[0] in help_texts[name][0], command
            checked += 1
    assert checked > 15


def test_help_says_what_a_script_reads_writes_and_what_comes_next(help_texts, subtests):
    for script in [*SCRIPTS, *TOOLS]:
        with subtests.test(script):
            text = help_texts[script][0]
            assert "Reads" in text and "Writes" in text and "Takes" in text
            assert script == "predict.py" or "Next" in text
    assert "Step 5 of 5" in help_texts["reproduce_tables.py"][0]


def test_a_tool_says_how_it_is_typed_and_two_have_their_earlier_name_too(help_texts):
    assert len(TOOLS) >= 5
    for tool in TOOLS:
        assert help_texts[tool][0].startswith(f"usage: python -m {tool} ")
    kept = {script: tool for script, tool in EARLIER.items() if script in SCRIPTS}
    assert sorted(kept) == ["check_dataset.py", "export_model.py"]
    for script, tool in kept.items():
        assert help_texts[script][0] == help_texts[tool][0]


def anchors(page):
    """Return the anchors of the headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_every_link_of_a_page_leads_somewhere(subtests):
    for page, target in [(path, link) for path in PAGES for link in links(path)]:
        with subtests.test(f"{page.relative_to(ROOT)}: {target}"):
            path, _, anchor = target.partition("#")
            other = (page.parent / path).resolve() if path else page
            assert other.exists()
            assert not anchor or anchor in anchors(other)
    assert len(PAGES) > 20


def links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")]


@pytest.mark.parametrize("page", ["README.md", "docs/running.md", "docs/configs.md", "docs/architecture.md"])
def test_every_path_of_a_page_exists(page):
    text = (ROOT / page).read_text()
    paths = re.findall(rf"`((?:{FOLDERS})/[\w/.]*)`", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert paths


def test_the_config_of_the_readme_is_complete():
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    config = Config.model_validate(yaml.safe_load(block))
    assert config.pretraining and config.finetuning and config.constraint_maps and config.slices


def test_the_readme_shows_what_the_demo_prints_early():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert lines.index("$ make demo") < lines.index("report: runs/renal_demo/report/index.html") < 50
    assert len(lines) < 125


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_has_small_pictures_and_data_sections_that_are_understood(page):
    text = page.read_text(encoding="utf-8")
    pictures = [page.parent / target for target in re.findall(r"\]\(([^)#:]+\.png)\)", text)]
    assert [picture for picture in pictures if picture.stat().st_size > 150_000] == []
    for block in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if "data" in (plain := yaml.safe_load(block)):
            DataSection.model_validate(plain["data"])
