"""The picture of step 1: correct slice and side, no global state changed, no partial file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from data.constraint_maps import ConstraintMap, ContrastSpace
from data.geometry import axial_turns
from evaluation.pictures import quality_control
from evaluation.pictures.quality_control import draw_constraint_map

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])  # RAS+


def subject(contrasts=2, components=2, classes=3, shape=(24, 20, 7)):
    """Return a body in slices 1 to 5, largest in 2 to 4; class 3 is only on the patient's right, at the front."""
    rng = np.random.default_rng(0)
    volume = rng.normal(100, 10, (*shape, contrasts)).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    labels[8:16, 8:12, 1:6] = 1
    labels[2:22, 2:18, 2:5] = 1
    labels[14:20, 12:17, 2:5] = classes  # RAS+: high x is right, high y is anterior
    sizes = np.bincount(labels.ravel(), minlength=classes + 1)[1:]
    images = np.where(labels[..., None] > 0, rng.normal(0, 1, (*shape, components)), 0).astype(np.float32)
    share = np.full(contrasts, 1 / contrasts)
    return volume, described(labels, images, share, sizes, AFFINE)


def described(labels, images, share, sizes, affine):
    """Return a constraint map with the given classes and components."""
    turn, turn_back = axial_turns(affine)
    inside = turn(labels > 0)
    return ConstraintMap(labels, ContrastSpace(turn(images)[inside], share, inside, turn_back, {}), sizes, 1.0)


@pytest.mark.parametrize(("contrasts", "components"), [(2, 1), (2, 2), (4, 4), (9, 4)])
def test_picture_is_written_whatever_the_number_of_panels(tmp_path, contrasts, components):
    volume, details = subject(contrasts, components)
    path = tmp_path / "qc" / "sub-1.png"
    draw_constraint_map(path, volume, [f"c{n}" for n in range(contrasts)], details, AFFINE, "sub-1")
    image = imread(path)
    assert image.ndim == 3 and min(image.shape[:2]) > 150
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
    assert [p.name for p in path.parent.iterdir()] == ["sub-1.png"]


def test_components_and_map_begin_a_line_below_the_contrasts():
    assert quality_control._places(2, 3) == (2, 3, 3)
    assert quality_control._places(5, 5) == (2, 5, 5)
    assert quality_control._places(9, 5) == (3, 5, 10)
    assert quality_control._places(1, 2) == (2, 2, 2)
    assert quality_control._places(8, 7) == (4, 5, 10)


def test_same_subject_same_file(tmp_path):
    volume, details = subject()
    for name in ("a.png", "b.png"):
        draw_constraint_map(tmp_path / name, volume, ["t1", "t2"], details, AFFINE, "sub-1")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_patients_right_is_on_the_left_however_it_lies_on_disk(signs, order):
    volume, details = subject()
    flip = tuple(slice(None, None, sign) for sign in signs)
    turn = [np.transpose(array[flip], (*order, *range(3, array.ndim))) for array in (volume, details.classes)]
    images = np.transpose(details.components[flip], (*order, 3))
    affine = np.eye(4)
    affine[:3, :3] = (AFFINE[:3, :3] @ np.diag(signs))[:, list(order)]
    turned = described(turn[1], images, details.space.explained_variance, details.class_sizes, affine)
    panels, classes, number = quality_control._panels(turn[0], ["t1", "t2"], turned, affine)
    assert number in (2, 3, 4) and classes.shape == (20, 24)
    rows, columns = np.nonzero(classes == 3)
    assert rows.mean() < 10, "anterior is at the top"
    assert columns.mean() < 12, "the patient's right is on the left"
    assert quality_control._pixel_aspect(affine) == pytest.approx(1)
    assert [panel[0] for panel in panels[:2]] == ["t1", "t2"]


def test_pixels_keep_their_shape():
    assert quality_control._pixel_aspect(np.diag([2.0, 3.0, 5.0, 1.0])) == pytest.approx(1.5)


def test_slice_is_the_middle_of_those_with_much_foreground():
    assert quality_control._representative_slice(np.array([0, 10, 85, 90, 100, 20])) == 3
    assert quality_control._representative_slice(np.array([0, 0, 5])) == 2


def test_black_and_white_are_percentiles_of_the_foreground():
    volume, details = subject()
    panels, _, number = quality_control._panels(volume, ["t1", "t2"], details, AFFINE)
    inside = details.classes > 0
    sources = [volume[..., 0], volume[..., 1], details.components[..., 0], details.components[..., 1]]
    for (_, image, window, _), source in zip(panels, sources, strict=True):
        assert window == pytest.approx(np.percentile(source[inside], (1, 99)))
        shown, expected = ((array[::-1, ::-1, number].T) for array in (inside, source))  # x left, y back
        np.testing.assert_array_equal(image[shown], expected[shown])


def test_components_are_blank_outside_the_foreground():
    volume, details = subject()
    panels, classes, _ = quality_control._panels(volume, ["t1", "t2"], details, AFFINE)
    name, image, (black, white), has_outline = panels[2]
    assert name == "PC 1, 50.0% of the variance" and not has_outline
    assert (image[classes == 0] == black).all() and white > black


def test_pyplot_is_not_loaded(tmp_path):
    """Checked in a new process, because another test may have loaded it in this one."""
    code = (
        "import sys, numpy as np\n"
        "from data.constraint_maps import describe_constraint_map\n"
        "from evaluation.pictures.quality_control import draw_constraint_map\n"
        "v = np.random.default_rng(0).random((6, 6, 2, 2), np.float32)\n"
        "recipe = {'clusters': 2, 'components': 2, 'tv_weight': 40, 'percentiles': (1, 99), 'seed': 0}\n"
        "d = describe_constraint_map(v, np.ones((6, 6, 2), bool), **recipe, affine=np.eye(4))\n"
        "draw_constraint_map(sys.argv[1], v, ['a', 'b'], d, np.eye(4), 'x')\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[3]
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.png"], cwd=root, check=True)
