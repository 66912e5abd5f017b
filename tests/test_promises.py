"""Every promise in docs/reliability.md and every fast path in benchmarks/README.md names a test that exists."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SAME = "the same"  # as in the row above


def rows_of(page, column):
    """Yield rows of a page's tables that have the given column: line number, first cell, cell of that column."""
    place = None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            place = None
        elif column in cells:
            place = cells.index(column)
        elif place is not None and not set(line) <= set("|- "):
            assert len(cells) > place, f"{page.name}, line {number}: the row is shorter than its heading"
            yield number, cells[0], cells[place]


def places_named_in(cell, page):
    """Yield the test files in a cell, by link or by path from the root, each with the name of a test or None."""
    for text, link in re.findall(r"\[([^]]*)\]\(([^)#]*tests/[^)#]*)\)", cell):
        yield (page.parent / link).resolve(), text.partition("::")[2] or None
    for path, _, name in re.findall(r"`(tests/[\w/.]+)(::(\w+))?`", re.sub(r"\]\([^)]*\)", "]", cell)):
        yield ROOT / path, name or None


def functions_of(path):
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def is_a_promise(_, cell):
    return not cell.startswith("not measured")


def missing(page, column, is_required):
    """Return the problems with the tests that a page names, one line each, and how many it names."""
    problems, named = [], 0
    for number, promise, cell in rows_of(page, column):
        found = list(places_named_in(cell, page))
        named += len(found)
        if not found and cell != SAME and is_required(promise, cell):
            problems.append(f"{page.name}, line {number}: no test is named for: {promise}")
        for path, name in found:
            files = sorted(path.rglob("test_*.py")) if path.is_dir() else [path] * path.is_file()
            if not any(functions_of(file) for file in files) or name and name not in functions_of(path):
                problems.append(f"{page.name}, line {number}: no such test: {path.name}{f'::{name}' if name else ''}")
    return problems, named


def test_every_promise_names_a_test_that_exists():
    problems, named = missing(ROOT / "docs" / "reliability.md", "test", is_a_promise)
    assert problems == [] and named > 10


def test_every_fast_path_names_a_test_that_exists():
    page = ROOT / "benchmarks" / "README.md"
    problems, named = missing(page, "the same as the plain path", lambda _, cell: bool(cell))
    assert problems == [] and named > 5


def test_a_test_that_is_gone_would_be_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("| promise | test |\n|---|---|\n| a | `tests/test_gone.py` |\n| b | |\n| c | the same |\n")
    problems, _ = missing(page, "test", is_a_promise)
    assert [line.partition(": ")[2] for line in problems] == ["no such test: test_gone.py", "no test is named for: b"]
    here = f"`tests/{Path(__file__).name}::"
    page.write_text(f"| promise | test |\n|---|---|\n| a | {here}test_gone` |\n| b | {here}missing` |\n")
    assert len(missing(page, "test", is_a_promise)[0]) == 2


def test_the_long_tests_are_tests_that_exist():
    (names,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "tests/conftest.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "LONG"
    ]
    assert len(names) > 50 and len(set(names)) == len(names)
    for entry in names:
        file, _, name = entry.partition("[")[0].partition("::")
        assert (ROOT / file).is_file() and (not name or name in functions_of(ROOT / file)), entry
