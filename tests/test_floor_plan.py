"""Imports point down only: scripts, then evaluation and training, then data, models and losses, then utils."""

import ast
from pathlib import Path

import pytest

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


def imports_of(path):
    """Yield (package, is at module level) for every import of a file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0], node in tree.body


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    folder = path.parent.name
    ours = {name for name, _ in imports_of(path) if name in MAY_IMPORT or name in SCRIPTS}
    assert ours <= MAY_IMPORT[folder]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_third_party_imports_of_a_layer(path):
    import sys

    folder = path.parent.name
    if folder not in THIRD_PARTY:
        pytest.skip("tables and figures may use what they need")
    others = {name for name, _ in imports_of(path)} - set(sys.stdlib_module_names) - set(MAY_IMPORT)
    assert others <= THIRD_PARTY[folder]


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


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_a_script_starts_without_heavy_libraries(script):
    heavy = {
        "keras",
        "tensorflow",
        "sklearn",
        "skimage",
        "pandas",
        "matplotlib",
        "nibabel",
        "h5py",
        "training",
        "models",
    }
    assert not {name for name, at_top in imports_of(ROOT / f"{script}.py") if at_top} & heavy
