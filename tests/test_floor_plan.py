"""Imports point down only: scripts, then evaluation and training, then data, models and losses, then utils."""

import ast
import functools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "utils": {"utils"},
    "data": {"data", "utils"},
    "models": {"models", "utils"},
    "losses": {"losses", "utils"},
    "training": {"training", "data", "models", "losses", "utils"},
    "evaluation": {"evaluation", "data", "models", "utils"},
}
NUMERIC = {"numpy", "scipy"}
THIRD_PARTY = {
    "utils": {"numpy", "yaml", "pydantic", "pydantic_core", "rich", "keras", "tensorflow"},
    "data": NUMERIC | {"SimpleITK", "h5py", "isal", "nibabel", "sklearn", "skimage", "nilearn", "threadpoolctl"},
    "models": {"numpy", "keras"},
    "losses": {"numpy", "keras"},
    "training": {"numpy", "keras", "tensorboardX", "mlflow"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
FILES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).glob("*.py"))]


@functools.cache
def imports_of(path):
    """Return (package, is at module level) of every import of a file."""
    return list(_imports_of(path))


def _imports_of(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0], node in tree.body


def test_imports_point_down(subtests):
    for path in FILES:
        with subtests.test(str(path.relative_to(ROOT))):
            ours = {name for name, _ in imports_of(path) if name in MAY_IMPORT or name in SCRIPTS}
            assert ours <= MAY_IMPORT[path.parent.name]


def test_third_party_imports_of_a_layer(subtests):
    checked = [path for path in FILES if path.parent.name in THIRD_PARTY]  # tables and figures use what they need
    for path in checked:
        with subtests.test(str(path.relative_to(ROOT))):
            others = {name for name, _ in imports_of(path)} - set(sys.stdlib_module_names) - set(MAY_IMPORT)
            assert others <= THIRD_PARTY[path.parent.name]
    assert {path.parent.name for path in checked} == set(THIRD_PARTY)


def test_there_are_files_to_check():
    assert len(FILES) > 20 and {"predict", "finetune_segmentation"} <= SCRIPTS


def test_utils_imports_keras_only_inside_functions():
    for path in sorted((ROOT / "utils").glob("*.py")):
        assert not {name for name, at_top in imports_of(path) if at_top} & {"keras", "tensorflow"}


def test_tensorflow_is_imported_in_one_function_only():
    files = [path for path in [*FILES, *ROOT.glob("*.py")] if "tensorflow" in {name for name, _ in imports_of(path)}]
    assert [path.name for path in files] == ["environment.py"]


def test_scripts_do_not_import_scripts():
    for script in ROOT.glob("*.py"):
        assert not {name for name, _ in imports_of(script)} & SCRIPTS, script.name


def test_a_script_starts_without_heavy_libraries(subtests):
    heavy = {"keras", "tensorflow", "sklearn", "skimage", "pandas", "matplotlib", "nibabel", "h5py", "models"}
    for path in [*map(ROOT.joinpath, (f"{script}.py" for script in sorted(SCRIPTS))), ROOT / "training" / "cells.py"]:
        with subtests.test(path.name):
            assert not {name for name, at_top in imports_of(path) if at_top} & heavy
            tops = [node.module for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
            assert {module for module in tops if module.startswith("training")} <= {"training.cells"}
