"""Measures of a synthesis against loops in float64; undefined values."""

import itertools
import math

import numpy as np
import pytest

from evaluation.scores.synthesis_metrics import psnr_db, score_synthesis
from utils.checks import InputError

CONTRASTS = ["t1", "t2"]


def volumes(size=(12, 13, 11), seed=0):
    generator = np.random.default_rng(seed)
    reference = generator.random((*size, 2))
    return reference + 0.2 * generator.normal(size=reference.shape), reference, generator.random(size) < 0.3


def ssim_by_hand(a, b, centre, data_range):
    """Return the SSIM at one voxel, with the volume mirrored at its faces (the outermost voxel occurs twice)."""
    sums = np.zeros(6)
    for offset in itertools.product(range(-5, 6), repeat=3):
        place = []
        for c, o, n in zip(centre, offset, a.shape, strict=True):
            i = (c + o) % (2 * n)
            place.append(i if i < n else 2 * n - 1 - i)
        x, y = a[tuple(place)], b[tuple(place)]
        weight = math.exp(-sum(o * o for o in offset) / (2 * 1.5**2))
        sums += weight * np.array([1, x, y, x * x, y * y, x * y])
    mx, my, xx, yy, xy = sums[1:] / sums[0]
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    cost = (mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)
    return (2 * mx * my + c1) * (2 * (xy - mx * my) + c2) / cost


@pytest.mark.parametrize("data_range", [1.0, 3.0])
def test_a_row_per_contrast_with_the_values_of_slow_loops(data_range):
    prediction, reference, _ = volumes()
    mask = np.zeros(reference.shape[:3], bool)
    mask[[0, 4, 11, 6], [12, 5, 0, 6], [3, 10, 0, 5]] = True  # corners, a face, the interior
    rows = score_synthesis(prediction, reference, CONTRASTS, data_range=data_range, mask=mask)
    assert [row["label"] for row in rows] == CONTRASTS
    for channel, row in enumerate(rows):
        a, b = prediction[..., channel], reference[..., channel]
        for suffix, places in (("", list(np.ndindex(a.shape))), ("_mask", list(zip(*np.nonzero(mask), strict=True)))):
            mse = math.fsum((a[place] - b[place]) ** 2 for place in places) / len(places)
            assert row[f"mse{suffix}"] == pytest.approx(mse, rel=1e-12)
            assert row[f"psnr_db{suffix}"] == pytest.approx(10 * math.log10(data_range**2 / mse), rel=1e-12)
        inner = itertools.product(range(5, 7), range(5, 8), range(5, 6))  # with the window inside the volume
        assert row["ssim"] == pytest.approx(np.mean([ssim_by_hand(a, b, c, data_range) for c in inner]), rel=1e-9)
        inside = [ssim_by_hand(a, b, centre, data_range) for centre in zip(*np.nonzero(mask), strict=True)]
        assert row["ssim_mask"] == pytest.approx(np.mean(inside), rel=1e-9)
        assert row["data_range"] == data_range


def test_thin_volumes_count_all_their_slices():
    prediction, reference, _ = volumes((13, 14, 4))
    (row, _) = score_synthesis(prediction, reference, CONTRASTS, data_range=1)
    inner = itertools.product((5, 6, 7), (5, 6, 7, 8), range(4))
    expected = np.mean([ssim_by_hand(prediction[..., 0], reference[..., 0], centre, 1) for centre in inner])
    assert row["ssim"] == pytest.approx(expected, rel=1e-9)


def test_a_perfect_synthesis():
    _, reference, mask = volumes((12, 12, 3))
    for row in score_synthesis(reference, reference, CONTRASTS, data_range=1, mask=mask):
        assert row["mse"] == row["mse_mask"] == 0 and row["psnr_db"] == row["psnr_db_mask"] == math.inf
        assert row["ssim"] == pytest.approx(1, abs=1e-12) and row["ssim_mask"] == pytest.approx(1, abs=1e-12)


def test_without_a_mask_none_with_an_empty_one_nan():
    prediction, reference, mask = volumes((11, 11, 2))
    without = score_synthesis(prediction, reference, CONTRASTS, data_range=1)
    empty = score_synthesis(prediction, reference, CONTRASTS, data_range=1, mask=np.zeros_like(mask))
    for one, other in zip(without, empty, strict=True):
        assert list(one) == list(other)
        for name in ("mse", "psnr_db", "ssim"):
            assert one[name] == other[name] and one[f"{name}_mask"] is None and math.isnan(other[f"{name}_mask"])


def test_rescaling_values_and_range_changes_the_error_only():
    prediction, reference, mask = volumes((12, 12, 5))
    rows = score_synthesis(prediction, reference, CONTRASTS, data_range=1, mask=mask)
    scale = np.array([10.0, 300.0])
    ranges = dict(zip(CONTRASTS, scale, strict=True))
    scaled = score_synthesis(scale * prediction, scale * reference, CONTRASTS, data_range=ranges, mask=mask)
    for row, other, factor in zip(rows, scaled, scale, strict=True):
        for suffix in ("", "_mask"):
            assert other[f"mse{suffix}"] == pytest.approx(row[f"mse{suffix}"] * factor**2)
            assert other[f"psnr_db{suffix}"] == pytest.approx(row[f"psnr_db{suffix}"])
            assert other[f"ssim{suffix}"] == pytest.approx(row[f"ssim{suffix}"])


def test_values_outside_the_mask_do_not_enter_its_error():
    prediction, reference, mask = volumes((12, 12, 3))
    (before, _) = score_synthesis(prediction, reference, CONTRASTS, data_range=1, mask=mask)
    prediction[~mask] += 1
    (after, _) = score_synthesis(prediction, reference, CONTRASTS, data_range=1, mask=mask)
    assert before["mse_mask"] == after["mse_mask"] and before["mse"] < after["mse"]


def test_the_psnr_of_an_unknown_error_is_unknown():
    assert math.isnan(psnr_db(math.nan, 1)) and psnr_db(0.01, 1) == pytest.approx(20)


def test_what_cannot_be_scored_is_refused():
    prediction, reference, mask = volumes((4, 5, 3))
    score = lambda *a, **k: score_synthesis(*a, **({"data_range": 1} | k))  # noqa: E731
    with pytest.raises(InputError, match=r"prediction is \(4, 5, 2, 2\) but the reference is \(4, 5, 3, 2\)"):
        score(prediction[:, :, 1:], reference, CONTRASTS)
    with pytest.raises(InputError, match="2 channels for the contrasts t1"):
        score(prediction, reference, ["t1"])
    with pytest.raises(InputError, match=r"mask is \(3, 5, 3\)"):
        score(prediction, reference, CONTRASTS, mask=mask[1:])
    with pytest.raises(InputError, match="data_range of 't2' is None; give a positive number"):
        score(prediction, reference, CONTRASTS, data_range={"t1": 1})
    with pytest.raises(InputError, match="data_range of 't1' is 0"):
        score(prediction, reference, CONTRASTS, data_range=0)
    prediction[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="prediction: 1 values are not finite"):
        score(prediction, reference, CONTRASTS)
