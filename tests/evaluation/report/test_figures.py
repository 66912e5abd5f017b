"""Figures: content read back from the matplotlib objects; overlays are oriented correctly."""

import warnings

import nibabel
import numpy as np
import pandas
import pytest
from nibabel import orientations

from evaluation.pictures.overlays import Picture, choose_subjects, draw_overlays, slices_to_show
from evaluation.report.figures import against_n, save_figure, save_training_curves, training_curves
from evaluation.scores.measures import SYNTHESIS, SYNTHESIS_MEASURES
from evaluation.scores.scores import MEAN, mean_interval
from tests.evaluation.made_scores import as_dice, as_scores
from utils import label_colours


@pytest.fixture(autouse=True)
def user_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        yield


def make_values(inits=("random", "constrained"), numbers=(2, 4, 8), subjects=5, labels=("liver",)):
    rng = np.random.default_rng(0)
    return pandas.DataFrame(
        [
            {"contrasts": "t2", "init": i, "n_annotated": n, "subject": f"s{s}", "label": k}
            | {"value": rng.uniform(0.4, 0.9)}
            for i in inits
            for n in numbers
            for s in range(subjects)
            for k in labels
        ]
    )


def test_lines_are_means_and_every_subject_is_a_point():
    values = make_values()
    figure = against_n(as_dice(values), labels=[MEAN])
    (axis,) = figure.axes
    assert axis.get_xlabel() == "annotated subjects N" and "Dice" in axis.get_ylabel()
    assert [text.get_text() for text in axis.get_xticklabels()] == ["2", "4", "8"]
    for init, container in zip(("random", "constrained"), axis.containers, strict=True):
        expected = [mean_interval(cell)[0] for _, cell in values[values.init == init].groupby("n_annotated")["value"]]
        np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
    points = [collection for collection in axis.collections if len(collection.get_offsets()) == 5]
    assert len(points) == 6
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "constrained"]


@pytest.mark.parametrize("beside_others", [True, False])
def test_the_supervised_baseline_is_a_dotted_line_and_a_point_only_beside_others(beside_others):
    values = make_values()
    if not beside_others:
        values = values[(values["n_annotated"] < 8) | (values["init"] == "random")]
    (axis,) = against_n(as_dice(values.assign(annotated_available=8)), labels=[MEAN]).axes
    (dotted,) = [line for line in axis.lines if line.get_linestyle() == ":"]
    baseline = values[(values.init == "random") & (values.n_annotated == 8)]
    np.testing.assert_allclose(dotted.get_ydata(), sum(baseline["value"]) / len(baseline))
    points = [len(container.lines[0].get_xdata()) for container in axis.containers]
    assert points == ([3, 3] if beside_others else [2, 2])
    names = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert names == ["random", "constrained", "random, all 8"]


@pytest.mark.parametrize(("inits", "numbers"), [(("random",), (8,)), (("constrained",), (2, 8)), (("random",), (2, 4))])
def test_without_a_baseline_beside_something_else_no_line_is_dotted(inits, numbers):
    (axis,) = against_n(as_dice(make_values(inits, numbers).assign(annotated_available=8))).axes
    assert not [line for line in axis.lines if line.get_linestyle() == ":"]
    assert len(axis.containers[0].lines[0].get_xdata()) == len(numbers)


def test_intervals_of_few_subjects_are_not_cut_off_below():
    values = make_values(("random",), (2,), subjects=2)
    values["value"] = [0.81, 0.89]
    (axis,) = against_n(as_dice(values)).axes
    low = mean_interval(values["value"])[2]
    assert low < 0.4 and axis.get_ylim()[0] < low and axis.get_ylim()[1] == 1.02
    values["value"] = [0.1, 0.9]
    assert against_n(as_dice(values)).axes[0].get_ylim()[0] == -0.02


@pytest.mark.parametrize(("numbers", "subjects"), [((4,), 5), ((2, 4), 1)])
def test_one_n_or_one_subject_still_gives_a_figure(numbers, subjects, tmp_path):
    values = make_values(numbers=numbers, subjects=subjects).assign(annotated_available=4)
    figure = against_n(as_dice(values))
    low, high = figure.axes[0].get_xlim()
    assert low < numbers[0] and numbers[-1] < high
    assert [len(container.lines[0].get_xdata()) for container in figure.axes[0].containers] == [len(numbers)] * 2
    save_figure(figure, tmp_path, "dice")
    assert (tmp_path / "dice.png").stat().st_size > 1000 and (tmp_path / "dice.pdf").exists()


def test_nan_are_named_and_an_init_missing_in_one_panel_keeps_its_colour(tmp_path):
    values = make_values(labels=("liver", "spleen"))
    values.loc[0, "value"] = np.nan
    values = pandas.concat([values.assign(repeat=0), values[:1].assign(repeat=1)])  # no value in either repeat
    values = values[(values["label"] == "liver") | (values["init"] == "constrained")]
    figure = against_n(as_dice(values, is_simulated=True))
    assert "2 NaN" in figure.axes[0].get_title()
    colours = [axis.containers[-1].lines[0].get_color() for axis in figure.axes]
    assert colours[0] == colours[1]
    assert figure.get_suptitle() == "Simulated scans."
    save_figure(figure, tmp_path, "dice")


def test_an_init_without_results_in_one_figure_leaves_the_colours_of_the_others():
    inits = ["random", "global", "constrained"]
    looks = []
    for present in (inits, ["random", "constrained"]):
        lines = [
            container.lines[0]
            for container in against_n(as_dice(make_values(present), inits=tuple(inits))).axes[0].containers
        ]
        looks.append([(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines])
    assert looks[1] == [looks[0][0], looks[0][2]]


@pytest.mark.parametrize("measure", SYNTHESIS_MEASURES, ids=lambda measure: measure.key)
def test_other_measures_have_axes_wide_enough_for_points_and_intervals(measure):
    values = make_values(labels=("t1", "t2"), subjects=3)
    values["value"] *= np.where(values["label"] == "t1", 40.0, 2.0)
    scores = as_scores(values.rename(columns={"value": measure.key}), task=SYNTHESIS)
    figure = against_n(scores, measure)
    assert [axis.get_title() for axis in figure.axes] == [
        f"{label} from t2 (3 test subjects)" for label in ("t1", "t2")
    ]
    assert {axis.get_ylabel() for axis in figure.axes} == {measure.title}
    assert {axis.get_xlabel() for axis in figure.axes} == {"finetuning subjects N"}
    ((low, high),) = {axis.get_ylim() for axis in figure.axes}
    ends = [mean_interval(cell)[2:] for _, cell in values.groupby(["label", "init", "n_annotated"])["value"]]
    assert low <= min(values["value"].min(), *(end[0] for end in ends))
    assert high >= max(values["value"].max(), *(end[1] for end in ends))


def test_six_inits_differ_in_more_than_colour():
    inits = ["random", "regression", "global", "global_local", "constrained", "other"]
    figure = against_n(as_dice(make_values(inits=inits), inits=tuple(inits)))
    few = against_n(as_dice(make_values()))
    assert figure.get_figwidth() > few.get_figwidth(), "six would hide one another in a narrow panel"
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 6


def test_the_same_figure_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        save_figure(against_n(as_dice(make_values())), tmp_path, name)
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_training_curves_join_the_epochs_that_were_validated(tmp_path):
    history = [{"epoch": e, "loss": 1 / e} | ({"val_loss": 2 / e} if e % 2 else {}) for e in range(1, 6)]
    (axis,) = training_curves({"stage 'global'": {"": pandas.DataFrame(history)}}).axes
    np.testing.assert_allclose(axis.lines[1].get_xdata(), [1, 3, 5])
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [2, 2 / 3, 2 / 5])
    save_training_curves(history, tmp_path / "curves.png", title="tiny: global")
    assert (tmp_path / "curves.png").exists()


HEALTH = {
    "val_feature_spread": 0.6,
    "val_share_without_positive": 0.1,
    "val_share_without_negative": 0.02,
    "val_alignment": 0.3,
    "val_uniformity": -2.0,
}


def make_history(*measures, epochs=4, shift=0.0):
    """Make a history in which each measure starts at its value in `HEALTH` and increases by 0.01 per epoch."""
    measures = {**{name: HEALTH[name] for name in measures}, "val_mean_positives": 15.0, "loss": 4.0, "val_loss": 4.5}
    rows = [{name: value + shift + epoch / 100 for name, value in measures.items()} for epoch in range(epochs)]
    return pandas.DataFrame([{"epoch": epoch + 1, **row} for epoch, row in enumerate(rows)])


def legend_of(axis):
    return [text.get_text().split(" (")[0] for text in axis.get_legend().get_texts()]


def test_health_is_drawn_beside_the_losses(tmp_path):
    history = make_history(*HEALTH)
    losses, shares, distances = training_curves({"constrained": {"": history}}).axes
    assert [len(axis.lines) for axis in (losses, shares, distances)] == [2, 3, 2]
    for axis, columns in ((shares, list(HEALTH)[:3]), (distances, list(HEALTH)[3:])):
        for line, column in zip(axis.lines, columns, strict=True):
            np.testing.assert_allclose(line.get_ydata(), history[column])
    assert legend_of(shares) == ["feature spread", "anchors without positive", "anchors without negative"]
    assert legend_of(distances) == ["alignment", "uniformity"]
    for axis in (losses, shares, distances):
        drawn = [line.get_linestyle() for line in axis.lines]
        assert drawn == [handle.get_linestyle() for handle in axis.get_legend().legend_handles]
        assert len(set(drawn)) == len(drawn)
    low, high = shares.get_ylim()
    assert low < 0 and high > 1
    assert [axis.get_xlabel() for axis in (losses, shares, distances)] == ["epoch"] * 3
    save_training_curves(history.to_dict("records"), tmp_path / "curves.png", title="tiny: constrained")
    assert (tmp_path / "curves.png").exists()


def test_stages_without_health_leave_no_empty_panel():
    stages = {
        "regression": {"": make_history()},
        "global": {"": make_history("val_feature_spread", "val_alignment", "val_uniformity")},
        "constrained": {"": make_history(*HEALTH)},
    }
    axes = np.reshape(training_curves(stages).axes, (3, 3))
    assert [[axis.axison for axis in row] for row in axes] == [[True, False, False], [True] * 3, [True] * 3]
    assert [axis.get_title() for axis in axes[:, 0]] == list(stages)
    assert legend_of(axes[1, 1]) == ["feature spread"]
    assert len(training_curves({"regression": {"": make_history()}}).axes) == 1
    only_distances = training_curves({"local": {"": make_history("val_alignment")}, "x": {"": make_history()}}).axes
    assert len(only_distances) == 4 and legend_of(only_distances[1]) == ["alignment"]


def test_measures_without_a_value_are_not_drawn():
    history = make_history(*HEALTH)
    history[["val_alignment", "val_uniformity", "val_share_without_positive"]] = np.nan
    history.loc[1, "val_feature_spread"] = np.nan
    _, shares = training_curves({"constrained": {"": history}}).axes
    assert legend_of(shares) == ["feature spread", "anchors without negative"]
    np.testing.assert_allclose(shares.lines[0].get_xdata(), [1, 3, 4])


def test_a_fold_has_one_colour_everywhere(tmp_path):
    folds = {f"fold{number}": make_history(*HEALTH, shift=number / 50) for number in range(3)}
    late = {name: folds[name] for name in ("fold1", "fold2")}
    figure = training_curves({"global": late, "constrained": folds}, note="Simulated scans.")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(folds)
    colours = {
        text.get_text(): handle.get_color()
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)
    }
    assert len(set(colours.values())) == 3
    for number, axis in enumerate(figure.axes):
        shown = late if number < 3 else folds
        drawn = [line.get_color() for line in axis.lines]
        assert drawn == [colours[fold] for fold in shown for _ in range(len(drawn) // len(shown))]
        assert len(legend_of(axis)) == len(drawn) // len(shown)
        assert not {handle.get_color() for handle in axis.get_legend().legend_handles} & set(colours.values())
    save_figure(figure, tmp_path, "curves")


@pytest.mark.parametrize(("stages", "count"), [(1, 5), (1, 10), (2, 10)])
def test_all_folds_fit_into_the_legend(stages, count):
    folds = {f"fold{number}": make_history(*HEALTH) for number in range(count)}
    figure = training_curves(dict.fromkeys(["global", "constrained"][:stages], folds))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    entries = [text.get_window_extent() for text in legend.get_texts()]
    assert len(entries) == count
    for place in (legend.get_window_extent(), *entries):
        assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1 and figure.bbox.y0 <= place.y0
    assert min(axis.get_window_extent().y0 for axis in figure.axes) > legend.get_window_extent().y1


def test_the_first_epoch_is_a_point():
    axes = training_curves({"constrained": {"": make_history(*HEALTH, epochs=1)}}).axes
    assert all(line.get_marker() == "." for axis in axes for line in axis.lines)


def test_subjects_are_chosen_by_rank():
    scores = {"a": (0.9, 0.8), "b": (0.2, 0.9), "c": (0.5, 0.5), "d": (np.nan, np.nan), "e": (0.7, 0.7)}
    rows = [{"subject": s, "label": MEAN, "value": v} for s, pair in scores.items() for v in pair]
    values = pandas.DataFrame(rows)
    assert choose_subjects(values) == {"median": "e", "worst": "c"}  # 0.5 c, 0.55 b, 0.7 e, 0.85 a
    assert choose_subjects(values.sample(frac=1, random_state=0)) == {"median": "e", "worst": "c"}
    assert choose_subjects(values[values["subject"] == "b"]) == {"worst": "b"}
    assert choose_subjects(values[values["subject"] == "d"]) == {}


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SAL", "LIA"])
def test_overlays_are_radiological_whatever_the_orientation_on_disk(codes):
    """A voxel right of, anterior and superior to the middle must appear on the left, at the top of the upper slice."""
    ras = np.zeros((9, 7, 5), np.uint8)
    ras[7, 5, 3] = 1  # right, anterior, superior
    image = nibabel.Nifti1Image(ras, np.diag([-2.0, 3.0, 5.0, 1.0]) @ np.diag([-1, 1, 1, 1]))
    turn = orientations.ornt_transform(orientations.io_orientation(image.affine), orientations.axcodes2ornt(codes))
    turned = image.as_reoriented(turn)
    volume = np.asarray(turned.dataobj)
    aspect, (shown, reference) = slices_to_show([volume, volume], turned.affine)
    assert shown.shape == (7, 9)
    assert aspect == pytest.approx(3 / 2)
    assert np.argwhere(reference).tolist() == [[1, 1]]


def test_the_slice_shows_small_organs_as_well_as_large_ones():
    reference = np.zeros((10, 10, 4), np.uint8)
    reference[:, :8, 0] = 1
    reference[:, :7, 2] = 1
    reference[:2, 9, 2] = 2
    _, (_, shown) = slices_to_show([reference, reference], np.eye(4))
    assert (shown == 2).any()


def test_without_a_reference_the_prediction_says_where_to_look():
    empty = np.zeros((6, 6, 5), np.uint8)
    prediction = empty.copy()
    prediction[2:4, 2:4, 3] = 1
    _, (_, _, shown) = slices_to_show([empty, empty, prediction], np.eye(4))
    assert shown.sum() == 4
    assert len(slices_to_show([empty, empty], np.eye(4))[1]) == 2


def test_an_overlay_has_a_panel_per_init_and_a_row_per_subject(tmp_path):
    rng = np.random.default_rng(0)
    reference = np.zeros((12, 10, 4), np.uint8)
    reference[3:7, 3:7, 1:3] = 1
    predictions = {"random": np.zeros_like(reference), "constrained": np.roll(reference, 1, 0)}
    dice = {"random": 0.0, "constrained": 0.75}
    picture = Picture("worst: s1", rng.random(reference.shape), reference, predictions, dice, np.diag([2, 2, 6, 1]))
    figure = draw_overlays(
        [picture, picture], label_colours.legend_of({"liver": 1, "spleen": 2}, {"liver": "#0A0BFF"}), "t2, N = 2"
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["reference", "random: Dice 0.000 (empty)", "constrained: Dice 0.750"] * 2
    assert figure.axes[0].get_ylabel() == "worst: s1"
    assert [len(axis.texts) for axis in figure.axes] == [1, 0, 0] * 2
    mark = figure.axes[0].texts[0]
    assert mark.get_text() == "R" and mark.get_position()[0] < 0.1, "the patient's right is on the left"
    legend = {
        text.get_text(): handle.get_linestyle()
        for text, handle in zip(figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True)
    }
    assert legend == {"liver": "-", "spleen": "-", "reference": "--", "prediction": "-"}
    assert figure.legends[0].legend_handles[0].get_color() == "#0A0BFF"
    for contour in figure.axes[2].collections:  # of the reference and of the prediction
        np.testing.assert_allclose(contour.get_edgecolor()[0], [10 / 255, 11 / 255, 1, 1])
    assert len(figure.axes[2].collections) == 2
    save_figure(figure, tmp_path, "overlay")


def test_many_inits_continue_in_the_next_row():
    reference = np.zeros((12, 10, 4), np.uint8)
    reference[3:7, 3:7, 1:3] = 1
    inits = ["random", "regression", "global", "global_local", "constrained", "other"]
    predictions, dice = dict.fromkeys(inits, reference), dict.fromkeys(inits, 1.0)
    picture = Picture("worst: s1", np.eye(12, 10)[..., None] * np.ones(4), reference, predictions, dice, np.eye(4))
    figure = draw_overlays([picture, picture], label_colours.legend_of({"liver": 1}), "t2, N = 2")
    assert figure.get_figwidth() < 10
    titles = [axis.get_title().split(":")[0] for axis in figure.axes]
    assert titles == ["reference", *inits, ""] * 2
    assert [axis.axison for axis in figure.axes] == [*[True] * 7, False] * 2
