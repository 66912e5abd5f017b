"""Foreground masks of simulated scans with a known outline, and intensity scaling."""

import numpy as np
import pytest
from nibabel import orientations
from scipy import ndimage

from data import intensity
from data.intensity import foreground_mask, intensity_ranges, scale_between, scale_intensities
from utils.checks import InputError

SHAPE = (48, 44, 12)


def ellipsoid(radii, centre=(24, 22, 6), shape=SHAPE):
    grid = np.indices(shape).astype(float)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


def head(rng, *, air=0.0, noise=3.0, signed=False, contrasts=3):
    """Return a head with bright scalp, dark skull, brain and dark CSF, in Rician (or Gaussian) noise."""
    outline, skull, brain = ellipsoid((18, 17, 9)), ellipsoid((16, 15, 8)), ellipsoid((14, 13, 7))
    liquor = ellipsoid((4, 3, 3))
    volume = np.zeros((*SHAPE, contrasts), np.float32)
    for c in range(contrasts):
        clean = 200.0 * outline
        clean[skull] = 5
        clean[brain] = 90 + 30 * c
        clean[liquor] = -40 if signed else 12
        channels = [clean + rng.normal(0, noise, SHAPE), rng.normal(0, noise, SHAPE)]
        volume[..., c] = air + (channels[0] if signed else np.hypot(*channels))
    return volume, outline


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("seed", range(3))
def test_head_in_noise_is_found_with_its_dark_inside(seed):
    volume, outline = head(np.random.default_rng(seed))
    mask = foreground_mask(volume)
    assert mask.dtype == bool
    assert dice(mask, outline) > 0.97
    assert mask[ellipsoid((4, 3, 3))].all(), "dark liquor belongs to the foreground"


def test_grey_air_of_signed_inversion_recovery_is_background():
    rng = np.random.default_rng(0)
    signed, outline = head(rng, air=76, noise=0.5, signed=True, contrasts=1)
    magnitude, _ = head(rng, contrasts=2)
    mask = foreground_mask(np.concatenate([signed, magnitude], axis=-1))
    assert dice(mask, outline) > 0.97
    assert dice(foreground_mask(signed), outline) > 0.97, "also when it is the only contrast"


def test_skull_stripped_brain_keeps_every_connected_voxel_of_tissue():
    rng = np.random.default_rng(1)
    brain = ellipsoid((15, 14, 5))
    volume = rng.uniform(2, 200, (*SHAPE, 2)).astype(np.float32) * brain[..., None]
    np.testing.assert_array_equal(foreground_mask(volume), brain)


def test_zeros_in_one_contrast_do_not_make_holes():
    brain = ellipsoid((15, 14, 5))
    volume = np.where(brain[..., None], np.float32([100, 150]), np.float32(0))
    volume[20:26, 20:24, 6, 0] = 0
    volume[22, 22, 6, :] = 0
    np.testing.assert_array_equal(foreground_mask(volume), brain)


def test_only_the_largest_region_is_kept():
    rng = np.random.default_rng(2)
    volume, outline = head(rng)
    volume[1:4, 1:4, 5:8] = 180
    assert not foreground_mask(volume)[1:4, 1:4].any()
    assert dice(foreground_mask(volume), outline) > 0.97


def test_mask_does_not_depend_on_the_unit_of_a_contrast_or_on_their_order():
    volume, _ = head(np.random.default_rng(3))
    mask = foreground_mask(volume)
    np.testing.assert_array_equal(foreground_mask(volume[..., ::-1]), mask)
    np.testing.assert_array_equal(foreground_mask(volume * np.float32([4, 0.25, 64])), mask)


def test_a_flat_contrast_does_not_disturb():
    volume, outline = head(np.random.default_rng(4))
    volume[..., 1] = 50
    assert dice(foreground_mask(volume), outline) > 0.97


def test_nothing_but_air_is_refused():
    with pytest.raises(InputError, match="no voxel differs from air in any contrast"):
        foreground_mask(np.full((8, 8, 4, 2), 7, np.float32))


def test_wrong_number_of_axes_is_refused():
    with pytest.raises(InputError, match="expected 4"):
        foreground_mask(np.ones((8, 8, 4), np.float32))


def test_holes_are_filled_as_by_scipy_slice_by_slice():
    region = np.random.default_rng(5).random((20, 21, 6)) > 0.45
    expected = np.stack([ndimage.binary_fill_holes(region[..., k]) for k in range(6)], axis=-1)
    np.testing.assert_array_equal(intensity._filled(region), expected)
    assert not (ndimage.binary_fill_holes(region) & ~expected).any(), "holes closed in 3D are among them"


def test_otsu_agrees_with_scikit_image():
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(6)
    score = np.concatenate([rng.normal(0.05, 0.01, 9000), rng.normal(0.6, 0.1, 3000)]).clip(0, 1).astype(np.float32)
    expected = threshold_otsu(np.sqrt(score), nbins=intensity.HISTOGRAM_BINS) ** 2
    split = score > intensity._otsu_threshold(score, score.size)
    assert abs(split.mean() - (score > expected).mean()) < 0.002


def scaled_by_hand(volume, mask, percentiles):
    result = np.zeros(volume.shape)
    for c in range(volume.shape[-1]):
        inside = sorted(float(v) for v in volume[..., c][mask])
        ends = []
        for percentile in percentiles:
            position = percentile / 100 * (len(inside) - 1)
            below = int(position)
            above = min(below + 1, len(inside) - 1)
            ends.append(inside[below] + (position - below) * (inside[above] - inside[below]))
        for index in np.ndindex(volume.shape[:3]):
            value = (volume[(*index, c)] - ends[0]) / (ends[1] - ends[0])
            result[(*index, c)] = min(max(value, 0), 1)
    return result


@pytest.mark.parametrize("percentiles", [(1, 99), (0, 100), (10, 50)])
def test_scaling_agrees_with_sorting_by_hand(percentiles):
    rng = np.random.default_rng(7)
    volume = rng.normal(300, 80, (7, 6, 5, 2)).astype(np.float32)
    mask = rng.random((7, 6, 5)) > 0.4
    scaled = scale_intensities(volume, mask, percentiles)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, scaled_by_hand(volume, mask, percentiles), atol=1e-5)


def test_scaling_ignores_unit_offset_and_what_lies_outside():
    rng = np.random.default_rng(8)
    volume = rng.normal(0, 1, (9, 9, 4, 3)).astype(np.float32)
    mask = rng.random((9, 9, 4)) > 0.5
    scaled = scale_intensities(volume, mask)
    np.testing.assert_allclose(scale_intensities(volume * 32 - 7, mask), scaled, atol=1e-5)
    disturbed = np.where(mask[..., None], volume, np.float32(1e6))
    np.testing.assert_array_equal(scale_intensities(disturbed, mask)[mask], scaled[mask])
    assert scaled.min() == 0 and scaled.max() == 1


def test_input_is_left_alone_and_integers_are_welcome():
    volume = np.random.default_rng(9).integers(0, 255, (6, 6, 3, 2), dtype=np.uint8)
    before = volume.copy()
    mask = np.ones(volume.shape[:3], bool)
    scaled = scale_intensities(volume, mask)
    np.testing.assert_array_equal(volume, before)
    np.testing.assert_allclose(scaled, scaled_by_hand(volume, mask, (1, 99)), atol=1e-5)


@pytest.mark.parametrize("has_mask", [True, False])
def test_ranges_and_scaling_between_them_are_the_scaling_in_two_steps(has_mask):
    volume, outline = head(np.random.default_rng(11))
    mask = outline if has_mask else None
    ranges = intensity_ranges(volume, mask, (2, 90))
    for contrast in range(3):
        inside = outline if has_mask else foreground_mask(volume[..., contrast : contrast + 1])
        values = sorted(volume[..., contrast][inside].tolist())
        for found, percentile in zip(ranges[contrast], (2, 90), strict=True):
            place = percentile / 100 * (len(values) - 1)
            assert values[int(place)] <= found <= values[min(int(place) + 1, len(values) - 1)]
    scaled = scale_intensities(volume, mask, (2, 90))
    np.testing.assert_array_equal(scale_between(volume, ranges), scaled)
    # Values between the two intensities can be recovered from them; values beyond are clipped.
    back = ranges[:, 0] + scaled * (ranges[:, 1] - ranges[:, 0])
    np.testing.assert_allclose(back, np.clip(volume, ranges[:, 0], ranges[:, 1]), atol=1e-4)


def test_flat_contrast_becomes_zero():
    volume = np.stack([np.full((4, 4, 3), 5.0), np.arange(48.0).reshape(4, 4, 3)], axis=-1)
    scaled = scale_intensities(volume, np.ones((4, 4, 3), bool))
    assert not scaled[..., 0].any() and np.isfinite(scaled).all()


@pytest.mark.parametrize(
    ("mask", "percentiles", "message"),
    [
        (np.zeros((4, 4, 3), bool), (1, 99), "no foreground voxel"),
        (np.ones((4, 4, 2), bool), (1, 99), r"\(4, 4, 2\) differs from the volume's \(4, 4, 3\)"),
        (np.ones((4, 4, 3), bool), (99, 1), "expected 0 <= lower < upper <= 100"),
        (np.ones((4, 4, 3), bool), (-1, 99), "expected 0 <= lower < upper <= 100"),
    ],
)
def test_scaling_refuses(mask, percentiles, message):
    with pytest.raises(InputError, match=message):
        scale_intensities(np.ones((4, 4, 3, 1), np.float32), mask, percentiles)


@pytest.mark.parametrize("code", ["ASR", "PIL", "SRA", "IRP"])
def test_the_foreground_does_not_depend_on_which_axis_of_the_file_runs_from_feet_to_head(code):
    rng, affine = np.random.default_rng(5), np.diag([1, 1, 4, 1.0])
    x, y, z = np.indices((40, 36, 9))
    body = (x - 20) ** 2 / 300 + (y - 16) ** 2 / 180 < 1
    body[15:22, 12:18, 2:7] = False  # a hole enclosed only within axial slices
    volume = np.where(body, 200 + 10 * z, 0)[..., None] + rng.rayleigh(5, (40, 36, 9, 2)).astype(np.float32)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code))
    stored = orientations.apply_orientation(volume, turn)
    turned = affine @ orientations.inv_ornt_aff(turn, volume.shape[:3])
    expected = orientations.apply_orientation(foreground_mask(volume), turn)
    np.testing.assert_array_equal(foreground_mask(stored, turned), expected)
    assert (foreground_mask(stored) != expected).any(), "without the affine it does"
    np.testing.assert_array_equal(intensity_ranges(stored, None, (1, 99), turned), intensity_ranges(volume, None))
    np.testing.assert_array_equal(foreground_mask(volume, affine), foreground_mask(volume))


@pytest.mark.parametrize("voxels", [1, 3])
def test_masks_grow_within_slices_as_by_scipy(voxels):
    mask = np.random.default_rng(7).random((12, 9, 4)) > 0.93
    expected = ndimage.binary_dilation(mask, intensity.IN_PLANE, iterations=voxels)
    assert mask.sum() < expected.sum() < mask.size
    np.testing.assert_array_equal(intensity._grown(mask, voxels), expected)


@pytest.mark.parametrize("factor", [1e-29, 1.0, 1e29])
def test_intensities_of_any_size_are_scaled_alike(factor):
    volume = np.random.default_rng(0).uniform(0, 900, (9, 9, 4, 2))
    mask = np.ones(volume.shape[:3], bool)
    expected = scale_intensities(volume.astype(np.float32), mask)
    scaled = scale_intensities((volume * factor).astype(np.float32), mask)
    np.testing.assert_allclose(scaled, expected, atol=2e-6)


def test_a_small_spread_beside_one_bright_voxel_is_scaled():
    volume = np.random.default_rng(0).uniform(0, 1e-38, (20, 20, 4, 1)).astype(np.float32)
    volume[0, 0, 0] = 1
    scaled = scale_intensities(volume, np.ones(volume.shape[:3], bool))
    assert np.isfinite(scaled).all() and 0.4 < np.median(scaled) < 0.6
