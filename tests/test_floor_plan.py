"""Imports point downwards only: scripts and tools; evaluation and training; data, models and losses; utils."""

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
    "data": NUMERIC
    | {"SimpleITK", "h5py", "isal", "nibabel", "slicerio", "sklearn", "skimage", "nilearn", "threadpoolctl"},
    "models": {"numpy", "keras"},
    "losses": {"numpy", "keras"},
    "training": {"numpy", "keras", "tensorboardX", "mlflow"},
}
IN_TORCH = {"unet_torch.py", "to_torch.py"}  # in models/: the exported file, and the module that exports it
MOST_PARAMETERS = 7
# Exceptions; remove an entry once it is fixed.
WITH_MORE_PARAMETERS = {
    # Public functions, whose argument names and order others rely on.
    "data/constraint_maps.py:constraint_map",
    "losses/constrained_contrastive.py:constrained_contrastive_loss",
    "losses/segmentation.py:focal_tversky_loss",
    "models/unet.py:build_unet",
    "tests/reference.py:anchor_cost",  # same arguments as the function it checks
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
TOP = [*sorted(ROOT.glob("*.py")), *sorted((ROOT / "tools").rglob("*.py"))]  # no other file imports these
FILES = [path for folder in MAY_IMPORT for path in sorted((ROOT / folder).rglob("*.py"))]


def floor_of(path):
    return path.relative_to(ROOT).parts[0]


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
            ours = {name for name, _ in imports_of(path) if name in {"tools", *MAY_IMPORT, *SCRIPTS}}
            assert ours <= MAY_IMPORT[floor_of(path)]


def test_third_party_imports_of_a_layer(subtests):
    checked = [path for path in FILES if floor_of(path) in THIRD_PARTY]  # tables and figures use whatever they need
    for path in checked:
        with subtests.test(str(path.relative_to(ROOT))):
            others = {name for name, _ in imports_of(path)} - set(sys.stdlib_module_names) - set(MAY_IMPORT)
            assert others - ({"torch"} if path.name in IN_TORCH else set()) <= THIRD_PARTY[floor_of(path)]
    assert {floor_of(path) for path in checked} == set(THIRD_PARTY)


def test_there_are_files_to_check():
    assert len(FILES) > 20 and {"predict", "finetune_segmentation"} <= SCRIPTS
    assert {"predict", "doctor"} <= {path.stem for path in TOP}


def test_utils_imports_keras_only_inside_functions():
    for path in sorted((ROOT / "utils").rglob("*.py")):
        assert not {name for name, at_top in imports_of(path) if at_top} & {"keras", "tensorflow"}


def test_tensorflow_is_imported_in_one_function_only():
    files = [path for path in [*FILES, *TOP] if "tensorflow" in {name for name, _ in imports_of(path)}]
    assert [path.name for path in files] == ["environment.py"]


def test_torch_is_imported_only_where_networks_are_exported():
    files = {path for path in [*FILES, *TOP] if "torch" in {name for name, _ in imports_of(path)}}
    files.remove(ROOT / "tools" / "_nnunet.py")  # runs in the environment of nnU-Net
    assert files == {ROOT / "models" / name for name in IN_TORCH}
    assert ("torch", True) not in imports_of(ROOT / "models" / "to_torch.py")
    assert not [
        path for path in FILES if "import unet_torch" in path.read_text() or "models.unet_torch" in path.read_text()
    ]


def test_scripts_and_tools_do_not_import_one_another():
    for script in TOP:
        assert not {name for name, _ in imports_of(script)} & {"tools", *SCRIPTS}, script.name


def test_a_script_starts_without_heavy_libraries(subtests):
    heavy = {"keras", "tensorflow", "sklearn", "skimage", "pandas", "matplotlib", "nibabel", "h5py", "models"}
    for path in [*TOP, ROOT / "training" / "cells.py"]:
        with subtests.test(path.name):
            assert not {name for name, at_top in imports_of(path) if at_top} & heavy
            tops = [node.module for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
            assert {module for module in tops if module.startswith("training")} <= {"training.cells"}


def functions_with_many_parameters():
    """List functions and methods of all files of the repository with too many parameters, `self` not counted."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT)
        if any(part.startswith(".") for part in name.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and len(parameters_of(node)) > MOST_PARAMETERS:
                yield f"{name}:{node.name}"


def parameters_of(function):
    """Return the parameter names of a function; `*rest` and `**options` count as one each."""
    found = function.args
    rest = [one for one in (found.vararg, found.kwarg) if one]
    names = [one.arg for one in [*found.posonlyargs, *found.args, *found.kwonlyargs, *rest]]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def test_no_function_takes_more_than_seven_parameters():
    found = set(functions_with_many_parameters())
    assert not found - WITH_MORE_PARAMETERS, "some of these parameters belong together"
    assert not WITH_MORE_PARAMETERS - found, "mended: take these out of the list"


def test_parameters_are_counted():
    function = ast.parse("def f(self, a, /, b, *c, d=1, **e): pass").body[0]
    assert parameters_of(function) == ["a", "b", "d", "c", "e"]
