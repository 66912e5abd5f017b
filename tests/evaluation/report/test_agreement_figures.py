"""Violins and Bland-Altman plots: their content, read back from matplotlib and compared with slow code."""

import statistics
import warnings

import numpy as np
import pandas
import pytest
from matplotlib.collections import PathCollection

from evaluation.report.agreement_figures import at_largest_n, bland_altman_plots, dice_violins
from evaluation.report.figures import MARKERS, colour_of
from tests.evaluation.made_scores import as_dice, as_scores


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def make_values(contrasts=("t2", "bold"), inits=("random", "constrained"), subjects=9, labels=("left", "right")):
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        [
            {"contrasts": c, "init": i, "n_annotated": n, "subject": f"s{s}", "label": k}
            | {"value": 0.1 if s == 0 else rng.uniform(0.7, 0.8)}
            for c in contrasts
            for i in inits
            for n in (2, 8)
            for s in range(subjects)
            for k in labels
        ]
    )


def points(axis):
    """Return the values of all scattered points, filled and open ones separately."""
    split = {True: [], False: []}
    for one in (one for one in axis.collections if isinstance(one, PathCollection)):
        split[bool(len(one.get_facecolors()))] += [y for _, y in one.get_offsets()]
    return split[True], split[False]


def test_every_subject_is_a_point_and_outliers_are_open():
    values = make_values()
    figure = dice_violins(as_dice(values))
    assert [axis.get_title() for axis in figure.axes] == ["left (9 test subjects)", "right (9 test subjects)"]
    for axis, label in zip(figure.axes, ("left", "right"), strict=True):
        expected = values[(values.n_annotated == 8) & (values.label == label)]["value"]
        filled, hollow = points(axis)
        np.testing.assert_allclose(sorted(filled + hollow), sorted(expected))
        assert hollow == [0.1] * 4  # two contrasts, two inits
        assert [text.get_text() for text in axis.get_xticklabels()] == ["t2\nN = 8", "bold\nN = 8"]


def test_markers_are_medians_and_differ_between_inits():
    values = make_values(contrasts=("t2",), labels=("left",))
    (axis,) = dice_violins(as_dice(values)).axes
    cells = values[(values.n_annotated == 8) & (values.label == "left")]
    expected = [statistics.median(cells[cells.init == init]["value"]) for init in ("random", "constrained")]
    markers = [line for line in axis.lines if line.get_marker() not in ("None", "")]
    np.testing.assert_allclose([line.get_ydata()[0] for line in markers], expected)
    assert len({line.get_marker() for line in markers}) == len({line.get_color() for line in markers}) == 2


def test_an_init_without_results_leaves_the_colours_of_the_others():
    values = make_values(contrasts=("t2",), labels=("left",))
    (axis,) = dice_violins(as_dice(values, inits=("random", "global", "constrained"))).axes
    last = [line for line in axis.lines if line.get_marker() not in ("None", "")][-1]
    assert (last.get_color(), last.get_marker()) == (colour_of(2), MARKERS[2])
    (sample,) = [one for one in axis.figure.legends[0].legend_handles if one.get_label() == "constrained"]
    assert (sample.get_color(), sample.get_marker()) == (colour_of(2), MARKERS[2])


def test_stars_stand_over_the_pairs_that_differ():
    rows = [("t2", 8, "left", 0.0005), ("bold", 8, "left", 0.03), ("t2", 2, "left", 0.001), ("t2", 8, "right", 0.2)]
    rows += [("bold", 8, "right", None)]
    differences = pandas.DataFrame(
        [
            {"contrasts": c, "init": "constrained", "n_annotated": n, "label": k, "p_bonferroni": p}
            for c, n, k, p in rows
        ]
    )
    left, right = dice_violins(as_dice(make_values()), differences).axes
    assert [text.get_text() for text in left.texts] == ["***", "*"]
    assert not right.texts
    (bar, other) = [line for line in left.lines if len(line.get_xdata()) == 4]
    assert bar.get_xdata()[0] < 0 < bar.get_xdata()[-1] < 0.5 < other.get_xdata()[0]
    assert min(bar.get_ydata()) > 1 and left.get_ylim()[1] > max(bar.get_ydata())
    assert left.get_ylim() == right.get_ylim(), "panels are compared by eye"


def test_one_init_alone_has_no_bars():
    for inits in (("random",), ("constrained",)):
        (axis,) = dice_violins(as_dice(make_values(inits=inits, labels=("left",))), pandas.DataFrame()).axes
        assert not axis.texts


def test_each_input_set_is_shown_at_its_own_largest_n():
    values = make_values(labels=("left",))
    values = values[(values.contrasts == "t2") | (values.n_annotated == 2)]
    assert at_largest_n(values).groupby("contrasts")["n_annotated"].unique().map(list).to_dict() == {
        "bold": [2],
        "t2": [8],
    }
    (axis,) = dice_violins(as_dice(values)).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["t2\nN = 8", "bold\nN = 2"]


@pytest.mark.parametrize(("subjects", "inits"), [(1, 2), (2, 1), (3, 6)])
def test_small_and_wide_studies_are_drawn(subjects, inits):
    names = ["random", "regression", "global", "global_local", "constrained", "other"][:inits]
    values = make_values(contrasts=list("abcde"), inits=names, subjects=subjects)
    values.loc[values.index[-1], "value"] = np.nan
    figure = dice_violins(as_dice(values, inits=tuple(names), is_simulated=True))
    assert 3.4 <= figure.get_figwidth() <= 7.0 and figure.get_suptitle() == "Simulated scans."
    figure.draw_without_rendering()


def make_volumes(contrasts=("t2", "bold"), inits=("random", "constrained"), subjects=8):
    rng = np.random.default_rng(1)
    return pandas.DataFrame(
        [
            {"contrasts": c, "init": i, "n_annotated": 8, "subject": f"s{s}", "label": "left"}
            | {"measured": 160 + rng.normal(10, 20), "reference": 150 + 3.0 * s}
            for c in contrasts
            for i in inits
            for s in range(subjects)
        ]
    )


def plot(volumes, inits=()):
    """Draw the plot for the volumes of the left kidney."""
    return bland_altman_plots(as_scores(volumes, inits=tuple(inits)), volumes, "left")


def test_bias_and_limits_are_those_of_the_volumes():
    volumes = make_volumes()
    figure = plot(volumes, ["random", "constrained"])
    assert "[mL]" in figure.get_supxlabel() and "[mL]" in figure.get_supylabel()
    assert figure.get_suptitle() == "left (8 test subjects)"
    cells = [(c, i) for c in ("t2", "bold") for i in ("random", "constrained")]
    for axis, (contrasts, init) in zip(figure.axes, cells, strict=True):
        cell = volumes[(volumes.contrasts == contrasts) & (volumes.init == init)]
        pairs = list(zip(cell.measured, cell.reference, strict=True))
        differences = [a - b for a, b in pairs]
        bias, sd = statistics.fmean(differences), statistics.stdev(differences)
        lines = [line.get_ydata()[0] for line in axis.lines]
        np.testing.assert_allclose(lines, [0, bias, bias - 1.96 * sd, bias + 1.96 * sd])
        (scattered,) = [one for one in axis.collections if len(one.get_offsets()) == 8]
        np.testing.assert_allclose(scattered.get_offsets(), [((a + b) / 2, a - b) for a, b in pairs])
        assert axis.get_title().startswith(f"{contrasts}, N = 8\n{init}\nbias ")
    assert len({axis.get_ylim() for axis in figure.axes}) == len({axis.get_xlim() for axis in figure.axes}) == 1
    figure.draw_without_rendering()


def test_without_volumes_there_is_no_plot_and_with_few_no_interval():
    volumes = make_volumes()
    assert plot(volumes.assign(measured=np.nan)) is None
    assert bland_altman_plots(as_scores(volumes), volumes, "right") is None
    one = plot(volumes[volumes.subject == "s1"])
    assert all(len(axis.lines) == 2 for axis in one.axes)  # zero and the bias


def test_six_inits_take_two_rows_and_a_missing_one_leaves_its_place_blank():
    inits = ["random", "regression", "global", "global_local", "constrained", "other"]
    volumes = make_volumes(inits=inits)
    volumes = volumes[(volumes.contrasts == "t2") | (volumes.init != "global")]
    axes = plot(volumes, inits).axes
    assert len(axes) == 12 and [number for number, axis in enumerate(axes) if not axis.axison] == [8]


def test_two_inits_of_five_contrasts_fit_on_a_page():
    figure = plot(make_volumes(contrasts=list("abcde")))
    assert figure.get_figwidth() <= 7 and figure.get_figheight() <= 9
    shown = [axis.get_title().split(",")[0] for axis in figure.axes if axis.axison]
    assert shown == [*"aabb", *"ccdd", *"ee"]
