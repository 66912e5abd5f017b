"""Agreement with relaxation times: fits and measures against loops, and scans with known results."""

import itertools

import numpy as np
import pandas
import pytest
from nibabel import orientations
from scipy.optimize import curve_fit

from data.constraint_maps import cluster, constraint_map
from evaluation.probes.relaxation import (
    ALL,
    CEILING,
    COLUMNS,
    FIT,
    HIDDEN,
    MAP,
    POSITION,
    SHIFTED,
    Relaxometry,
    agreement_by_images,
    agreement_of_single_images,
    best_times,
    spread_images,
)
from evaluation.probes.relaxation_figures import (
    agreement_against_images,
    medians_of_classes,
    middle_slice,
    pixel_aspect,
)
from evaluation.probes.relaxation_tables import BEST, WORST, relaxometry_table, summarised

AFFINE = np.array([[3.0, 0, 0, -20], [0, 0, 5, -10], [0, 2, 0, -15], [0, 0, 0, 1]])  # axes R, S, A: coronal slices
ECHOES = np.array([10.0, 20, 30, 40, 60, 80])
RECIPE = {"components": 4, "tv_weight": 1e6, "percentiles": (0, 100)}


def decaying(seed=0, noise=0.0):
    """Return a scan of four columns of tissue with T2 30, 50, 80 and 120 ms and amplitudes unlike in each row."""
    rng = np.random.default_rng(seed)
    shape = (16, 12, 3)
    true = np.broadcast_to(np.repeat([30.0, 50, 80, 120], 4)[:, None, None], shape)
    amplitude = np.broadcast_to(np.linspace(500, 1500, 12)[None, :, None], shape)
    volume = amplitude[..., None] * np.exp(-ECHOES / true[..., None])
    volume = (volume + rng.normal(0, noise, volume.shape)).astype(np.float32)
    mask = np.ones(shape, bool)
    mask[:, :2] = False
    chosen = mask.copy()
    chosen[:, -1] = False
    return Relaxometry(volume, mask, AFFINE, ECHOES, true.astype(np.float32), chosen, (5.0, 400.0), "decay")


def frame(rows):
    return pandas.DataFrame(rows, columns=COLUMNS)


def value(rows, **wanted):
    found = frame(rows)
    for column, one in wanted.items():
        found = found[found[column] == one]
    assert len(found) == 1
    return found["value"].item()


def share_between(classes, values):
    """Return eta squared from its definition: one minus the variance inside classes over that of all values."""
    inside = sum(sum((v - np.mean(values[classes == k])) ** 2 for v in values[classes == k]) for k in set(classes))
    return 1 - inside / sum((v - np.mean(values)) ** 2 for v in values)


def residual(signals, times, candidate, model):
    """Return the smallest sum of squared residuals of one voxel over amplitudes and, in recovery, signs."""
    basis = np.exp(-times / candidate)[:, None]
    signs = [np.ones(len(times))]
    if model == "recovery":
        basis = np.hstack([np.ones_like(basis), basis])
        signs = [np.where(np.arange(len(times)) < early, -1, 1) for early in range(len(times) + 1)]
    left = []
    for sign in signs:
        weights = np.linalg.lstsq(basis, sign * signals, rcond=None)[0]
        left.append(np.sum((sign * signals - basis @ weights) ** 2))
    return min(left)


@pytest.mark.parametrize("model", ["decay", "recovery"])
def test_a_fit_has_the_smallest_residual_of_all_candidates_and_signs(model):
    rng = np.random.default_rng(1)
    times, candidates = np.array([50.0, 200, 400, 800, 1600, 3000]), np.geomspace(100, 3000, 25)
    signals = np.abs(rng.normal(0, 1, (20, 6)) + 5 * np.exp(-times / 700) - (2 if model == "recovery" else 0))
    found = best_times(signals, times, candidates, model)
    for voxel, time in zip(signals, found, strict=True):
        left = [residual(voxel, times, candidate, model) for candidate in candidates]
        assert residual(voxel, times, time, model) == pytest.approx(min(left), rel=1e-9)


def test_fits_agree_with_scipy_on_noisy_signals():
    rng = np.random.default_rng(2)
    inversion = np.arange(100.0, 1801, 200)
    candidates = np.geomspace(20, 4000, 500)
    for true in (40.0, 90.0):
        signal = 800 * np.exp(-ECHOES / true) + rng.normal(0, 3, len(ECHOES))
        (_, expected), _ = curve_fit(lambda t, a, time: a * np.exp(-t / time), ECHOES, signal, p0=(700, 60))
        assert best_times(signal[None], ECHOES, candidates, "decay")[0] == pytest.approx(expected, rel=0.011)
    for true in (400.0, 1300.0):
        signal = np.abs(900 - 1700 * np.exp(-inversion / true) + rng.normal(0, 3, len(inversion)))
        (*_, expected), _ = curve_fit(
            lambda t, a, b, time: np.abs(a - b * np.exp(-t / time)), inversion, signal, p0=(850, 1600, 1.1 * true)
        )
        found = best_times(signal[None], inversion, candidates, "recovery")[0]
        assert found == pytest.approx(expected, rel=0.011)
        delayed = best_times(signal[None], inversion + 150, candidates, "recovery")[0]
        assert delayed == found, "a delay changes the amplitude only"


def test_a_time_beyond_the_limits_ends_at_the_limit():
    signals = 100 * np.exp(-ECHOES / np.array([[1e6], [1.0]])) + 1e-12
    assert best_times(signals, ECHOES, np.geomspace(5, 400, 9), "decay").tolist() == pytest.approx([400, 5])


@pytest.mark.parametrize("choice", ["inner", "ends"])
@pytest.mark.parametrize("total", [2, 5, 10, 12, 18])
def test_images_are_spread_evenly(total, choice):
    for number in range(2, total + 1):
        found = spread_images(number, total, choice).tolist()
        assert len(set(found)) == number and found == sorted(found) and set(found) <= set(range(total))
        gaps = np.diff(found)
        assert gaps.max() - gaps.min() <= 1
        assert choice == "inner" or (found[0], found[-1]) == (0, total - 1)
    assert spread_images(total, total, choice).tolist() == list(range(total))
    assert choice == "ends" or spread_images(1, total, choice).tolist() == [total // 2]


def test_only_chosen_voxels_count_and_the_measure_is_that_of_its_definition():
    scan, every = decaying(noise=5.0), np.arange(6)
    rows = agreement_by_images(scan, [np.array([0, 5]), every], RECIPE, 5, [7, 8])
    for images in ([0, 5], every):
        classes = constraint_map(scan.volume[..., images], scan.mask, clusters=5, seed=7, affine=AFFINE, **RECIPE)
        logs = np.log(scan.fitted_ms[scan.chosen].astype(float))
        expected = share_between(classes[scan.chosen], logs)
        assert 0.05 < expected < 1
        found = value(rows, images=len(images), made_from=MAP, reference=ALL, measure="variance", seed="0")
        assert found == pytest.approx(expected, abs=1e-6)
    classes = constraint_map(scan.volume[..., [0, 5]], scan.mask, clusters=5, seed=7, affine=AFFINE, **RECIPE)
    hidden = best_times(scan.volume[scan.chosen][:, 1:5], ECHOES[1:5], np.geomspace(5, 400, 300), "decay")
    found = value(rows, images=2, made_from=MAP, reference=HIDDEN, measure="variance", seed="0")
    assert found == pytest.approx(share_between(classes[scan.chosen], np.log(hidden)), abs=1e-6)
    assert not len(frame(rows).query("images == 6 and reference == @HIDDEN")), "nothing is hidden there"


def test_hidden_images_change_the_hidden_reference_and_nothing_else():
    scan, images = decaying(noise=2.0), [np.array([0, 5])]
    rng, spoiled = np.random.default_rng(3), scan.volume.copy()
    spoiled[..., 1:5] = rng.uniform(1, 1000, spoiled[..., 1:5].shape)
    before = frame(agreement_by_images(scan, images, RECIPE, 6, [7]))
    spoilt = Relaxometry(spoiled, scan.mask, AFFINE, ECHOES, scan.fitted_ms, scan.chosen, scan.limits_ms, "decay")
    after = frame(agreement_by_images(spoilt, images, RECIPE, 6, [7]))
    of_all = before["reference"] == ALL
    pandas.testing.assert_frame_equal(before[of_all], after[of_all])
    of_images = (
        before["made_from"].isin([MAP, FIT]) & (before["reference"] == HIDDEN) & (before["measure"] == "variance")
    )
    assert of_images.sum() == 2
    assert (before["value"][of_images] > 0.5).all() and (after["value"][of_images] < 0.1).all()


def test_two_images_without_noise_tell_the_time_and_a_fit_to_them_does_so_fully():
    rows = agreement_by_images(decaying(), [np.array([0, 5])], RECIPE, 20, [1])
    assert value(rows, made_from=FIT, reference=HIDDEN, measure="variance") == pytest.approx(1, abs=1e-3)
    assert 0.8 < value(rows, made_from=MAP, reference=HIDDEN, measure="variance") < 1


def test_baselines_of_a_scan_whose_time_is_a_matter_of_place():
    scan, names = decaying(), [f"echo{n}" for n in range(6)]
    rows = agreement_of_single_images(scan, names, RECIPE, 12, [1])
    rows += agreement_by_images(scan, [np.array([0, 5])], RECIPE, 12, [1])
    share = {
        name: value(rows, made_from=name, reference=ALL, measure="variance", seed="0")
        for name in (*names, CEILING, POSITION)
    }
    assert share[CEILING] == pytest.approx(1, abs=1e-6) and share[POSITION] > 0.8
    assert share["echo5"] > share["echo0"] + 0.2, "the first echo shows mostly the amplitude"
    place_mm = np.argwhere(scan.chosen) * [3.0, 2, 5]  # as far apart as with the axes of the affine
    nearest = cluster(place_mm.astype(np.float32), 12, 1)[0]
    logs = np.log(scan.reference_ms.astype(float))
    assert share_between(nearest, logs) == pytest.approx(share[POSITION], abs=0.1)
    others = best_times(scan.volume[scan.chosen][:, :5], ECHOES[:5], np.geomspace(5, 400, 300), "decay")
    classes = constraint_map(scan.volume[..., [5]], scan.mask, clusters=12, seed=1, affine=AFFINE, **RECIPE)
    found = value(rows, made_from="echo5", reference=HIDDEN, measure="variance", seed="0")
    assert found == pytest.approx(share_between(classes[scan.chosen], np.log(others)), abs=1e-6)


def test_a_map_explains_nothing_at_a_wrong_place_nor_does_the_position():
    rng, scan = np.random.default_rng(5), decaying()
    true = rng.choice([30.0, 50, 80, 120], scan.mask.shape)
    volume = (1000 * np.exp(-ECHOES / true[..., None])).astype(np.float32)
    scan = Relaxometry(volume, scan.mask, AFFINE, ECHOES, true, scan.chosen, scan.limits_ms, "decay")
    rows = agreement_by_images(scan, [np.array([0, 5])], RECIPE | {"tv_weight": 1e9}, 12, [1])
    share = {name: value(rows, made_from=name, reference=ALL, measure="variance") for name in (MAP, SHIFTED, POSITION)}
    assert share[MAP] > 0.99 and share[SHIFTED] < 0.1 and share[POSITION] < 0.1


def made_rows():
    rows = [
        ["s", 1, "echo1", ALL, "variance", "0", 0.2],
        ["s", 1, "echo1", ALL, "variance", "1", 0.4],
        ["s", 1, "echo2", ALL, "variance", "0", 0.6],
        ["s", 1, "echo2", ALL, "variance", "1", 0.5],
        ["s", 1, "echo1", HIDDEN, "variance", "0", 0.9],
        ["s", 1, "echo2", HIDDEN, "variance", "0", 0.5],
        ["s", 1, "echo1", ALL, "ami", "0", 0.3],
        ["s", 1, "echo2", ALL, "ami", "0", 0.1],
        ["s", 2, MAP, ALL, "variance", "0", 0.7],
        ["s", 2, MAP, ALL, "variance", "1", 0.8],
        ["s", 2, MAP, ALL, "ami", "0", 0.33],
        ["s", 2, MAP, "", "stability", "0-1", 0.9],
    ]
    return pandas.DataFrame(rows, columns=["subject", *COLUMNS])


def test_the_table_averages_seeds_and_names_the_best_and_worst_image_by_variance():
    numbers = summarised(made_rows().query("reference != @HIDDEN")).set_index(["made_from", "measure"])
    assert numbers.loc[(BEST, "variance"), "mean"] == pytest.approx(0.55)
    assert numbers.loc[(BEST, "variance"), "image"] == "echo2" == numbers.loc[(BEST, "ami"), "image"]
    assert numbers.loc[(WORST, "ami"), "mean"] == pytest.approx(0.3), "of the same image"
    assert numbers.loc[(MAP, "variance"), ["lowest", "highest", "seeds"]].tolist() == [0.7, 0.8, 2]
    table = relaxometry_table(made_rows().query("reference != @HIDDEN"), "note.")
    text = table.text.set_index("classes of")
    assert text.loc[f"{MAP}; {ALL}", "2"] == "0.75 *0.33*" and text.loc[f"{BEST}; {ALL}", "1"] == "0.55 *0.10* echo2"
    assert text.loc["constraint map; stability", "2"] == "0.90" and table.caption.startswith("note. ")
    assert "at most 0.100 between" in table.caption


def test_the_figure_has_a_panel_per_subject_and_a_line_per_level():
    rows = pandas.concat([made_rows(), made_rows().assign(subject="t")])
    figure = agreement_against_images(summarised(rows))
    assert [axis.get_title() for axis in figure.axes] == ["s", "t"]
    levels = [
        line.get_ydata()[0]
        for line in figure.axes[0].lines
        if line.get_linestyle() == "--" and len(line.get_xdata()) == 2
    ]
    assert levels == pytest.approx([0.5, 0.9]), (
        "against hidden images, of the images that are best and worst against all"
    )


def test_a_class_shows_the_median_of_its_compared_voxels():
    scan = decaying()
    classes = np.where(scan.mask, 1 + (np.arange(16) >= 8)[:, None, None], 0).astype(np.uint8)
    shown = medians_of_classes(classes, scan)
    assert np.isnan(shown[~scan.mask]).all()
    assert np.unique(shown[scan.mask]).tolist() == pytest.approx([40, 100])


@pytest.mark.parametrize("codes", ["RSA", "LSA", "RIP", "SLA", "IRP", "RAS", "PLI"])
def test_right_is_left_and_the_head_is_on_top_in_any_coronal_orientation(codes):
    """The image is 10 times the distance to the right edge plus the distance from the top, in voxels of RSA."""
    x, y, z = np.meshgrid(np.arange(6), np.arange(5), np.arange(3), indexing="ij")
    values = 10 * (5 - x) + (4 - y) + 100 * z
    turn = orientations.ornt_transform(orientations.io_orientation(AFFINE), orientations.axcodes2ornt(tuple(codes)))
    affine = AFFINE @ orientations.inv_ornt_aff(turn, values.shape)
    turned = orientations.apply_orientation(values, turn)
    seen = middle_slice(turned, affine)
    for row, column in itertools.product(range(5), range(6)):
        assert seen[row, column] == 10 * column + row + 100
    assert pixel_aspect(affine) == pytest.approx(2 / 3)
