"""Label maps predicted by another tool: which subject each file belongs to, and what it takes to be scored."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data.layouts.files import SUFFIXES, stem_of
from data.nnunet import subject_of_case
from data.scans.grid import Grid, grid_problems
from data.scans.nifti import whole_number
from data.scans.scan import read_scan
from utils.checks import InputError
from utils.paths import composed

ON_THE_GRID = "a prediction lies on the grid of the scan; resample it there by nearest neighbour"
OTHERS = "others"  # all values that belong to no class
MOST_VALUES = 8  # listed in a message


def find_predictions(
    folder: Path, tested: Sequence[str], others: Mapping[str, str]
) -> tuple[dict[str, Path], list[str]]:
    """Find the prediction for every test subject: a file named after the subject, or after its nnU-Net case.

    Args:
        folder: Where the predictions are; folders and files that are not NIfTI are ignored.
        tested: The test subjects.
        others: Other subjects -> what each is, such as `a training subject`.

    Returns:
        Test subject -> file, in the order of `tested`, and one line for each file that is missing, belongs to no
        subject or to one that is not tested, or is one too many.
    """
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(path for path in folder.iterdir() if path.name.endswith(SUFFIXES) and path.name[0] != "."):
        name = composed(stem_of(path))
        subject = name if name in tested or name in others else subject_of_case(name)
        if subject not in tested:
            problems.append(_not_tested(path, subject, tested, others.get(subject)))
        elif subject in found:
            problems.append(f"{subject}: has two predictions, '{found[subject]}' and '{path.name}'; keep one")
        else:
            found[subject] = path
    problems += [
        f"{subject}: no prediction '{folder / subject}.nii.gz'; add it" for subject in tested if subject not in found
    ]
    return {subject: found[subject] for subject in tested if subject in found}, problems


def _not_tested(path, name, tested, role):
    if role:
        return f"{name}: '{path}' is a prediction of {role}; only test subjects are scored, remove it"
    near = difflib.get_close_matches(name, tested, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "name it after a test subject, such as <subject>.nii.gz"
    return f"'{path}': no subject of this study has this name; {hint}"


def read_classes(
    path: Path, subject: str, grid: Grid, values: Mapping[str, Sequence[int]], ignored: Sequence[int | str] = ()
) -> np.ndarray:
    """Read a prediction as class indices of the config.

    Args:
        path: The label map; floats are accepted if all of them are whole numbers.
        subject: Identifier, for messages.
        grid: Shape and affine that the file must have.
        values: Class name -> its values in the file, in the order of the config.
        ignored: Further values that count as background; `OTHERS` stands for all other whole numbers.

    Returns:
        `(X, Y, Z)` uint8; 0 is background.

    Raises:
        InputError: One line for each problem of the file.
    """
    image, problems = read_scan(path, subject)
    if problems or image is None:
        raise InputError(problems)
    if len(image.shape) != 3:
        raise InputError(f"{subject}: '{path}' is {image.shape}, expected 3 axes; a label map is one 3D volume")
    problems = grid_problems(subject, path, image, grid, ON_THE_GRID)
    meaning: dict[float | str, int] = {0: 0, **dict.fromkeys(ignored, 0)}
    for index, members in enumerate(values.values(), start=1):
        meaning |= dict.fromkeys(members, index)
    present = [(value, whole_number(value)) for value in np.unique(image.values).tolist()]
    if OTHERS in ignored:
        meaning = {**{meant: 0 for _, meant in present if isinstance(meant, int)}, **meaning}
    problems += _unknown(subject, path, [value for value, meant in present if meant not in meaning], values)
    if problems:
        raise InputError(problems)
    classes = np.zeros(image.shape, np.uint8)
    for value, meant in present:
        classes[image.values == value] = meaning[meant]
    return classes


def _unknown(subject, path, unknown, values):
    """Report the values of a file that have no meaning; at most one line."""
    broken = [value for value in unknown if not isinstance(whole_number(value), int)]
    shown = broken or unknown
    if not shown:
        return []
    listed = ", ".join(f"{value:.9g}" for value in shown[:MOST_VALUES]) + (", ..." if len(shown) > MOST_VALUES else "")
    if broken:
        return [f"{subject}: '{path}' holds {listed}, not whole numbers; give class numbers, not probabilities"]
    known = ", ".join(f"{name} {' '.join(map(str, members)) or '-'}" for name, members in values.items())
    cure = "give --labels NAME=VALUE ..., or list what is background in --ignored-values"
    return [f"{subject}: '{path}' holds {listed}, but the classes are {known}; {cure}"]
