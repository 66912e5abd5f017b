"""Constraint maps of a phantom with known tissues, and each part of the method against an independent reference."""

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from data import constraint_maps
from data.constraint_maps import (
    cluster,
    constraint_map,
    contrast_space,
    denoise,
    describe_constraint_map,
    principal_components,
)
from data.geometry import axial_turns
from data.intensity import foreground_mask, scale_intensities
from utils.checks import InputError

SHAPE = (40, 36, 8)
TISSUES = np.float32([[0, 0, 0], [40, 160, 90], [90, 60, 140], [150, 150, 30], [200, 20, 200]])
RECIPE = {"clusters": 4, "components": 3, "tv_weight": 40, "percentiles": (1, 99), "seed": 0}


def phantom(seed=0, noise=4.0):
    """Return four tissues in three noisy contrasts; background is 0, tissue 1 is the darkest on average, and so on."""
    tissue = np.zeros(SHAPE, int)
    tissue[4:36, 4:32] = 1
    tissue[8:20, 8:28] = 2
    tissue[22:32, 8:18] = 3
    tissue[22:32, 20:30] = 4
    noisy = TISSUES[tissue] + np.random.default_rng(seed).normal(0, noise, (*SHAPE, 3))
    return noisy.astype(np.float32), tissue


def test_known_tissues_become_classes():
    volume, tissue = phantom()
    classes = constraint_map(volume, tissue > 0, clusters=4, components=3)
    assert classes.shape == SHAPE and classes.dtype == np.uint8
    assert not classes[tissue == 0].any()
    assert set(np.unique(classes[tissue > 0])) == {1, 2, 3, 4}
    for t in range(1, 5):
        assert np.bincount(classes[tissue == t]).max() > 0.99 * (tissue == t).sum()


def test_classes_ascend_along_the_first_component():
    volume, tissue = phantom()
    details = describe_constraint_map(volume, tissue > 0, **RECIPE)
    means = [details.components[details.classes == k, 0].mean() for k in range(1, 5)]
    assert means == sorted(means)


def test_details_are_consistent():
    volume, tissue = phantom()
    details = describe_constraint_map(volume, tissue > 0, **RECIPE)
    inside = details.classes > 0
    np.testing.assert_array_equal(details.class_sizes, np.bincount(details.classes[inside])[1:])
    centres = [details.components[details.classes == k].mean(axis=0) for k in range(1, 5)]
    by_hand = sum(((details.components[details.classes == k] - centres[k - 1]) ** 2).sum() for k in range(1, 5))
    assert details.inertia == pytest.approx(by_hand, rel=1e-3)
    assert details.space.explained_variance.sum() == pytest.approx(1)
    assert set(details.seconds) == {"mask", "scaling", "pca", "denoising", "kmeans"}
    assert details.components.dtype == np.float32 and not details.components[~inside].any()


@pytest.mark.parametrize("axes", ["PLS", "ASL"])
def test_a_contrast_space_clustered_again_and_again_gives_the_same_maps(axes):
    volume, tissue = phantom()
    affine = np.eye(4)
    affine[:3, :3] = [[(code == up) - (code == down) for code in axes] for up, down in ("RL", "AP", "SI")]
    space = contrast_space(volume, tissue > 0, components=3, tv_weight=40, percentiles=(1, 99), affine=affine)
    assert space.features.shape == ((tissue > 0).sum(), 3)
    for clusters, seed in ((4, 0), (9, 7)):
        expected = describe_constraint_map(
            volume, tissue > 0, **RECIPE | {"clusters": clusters, "seed": seed}, affine=affine
        )
        np.testing.assert_array_equal(space.restore(cluster(space.features, clusters, seed)[0]), expected.classes)
        np.testing.assert_array_equal(space.restore(space.features), expected.components)


@pytest.mark.parametrize("has_mask", [True, False])
def test_features_equal_those_of_the_whole_volume_cut_out_late(has_mask):
    """Only the bounding box of the foreground is scaled and projected; the reference prepares all voxels first."""
    volume, tissue = phantom()
    affine = np.array([[0, -1.0, 0, 0], [0, 0, 2, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # S, L, A
    mask = tissue > 0 if has_mask else None
    recipe = {"components": 3, "tv_weight": 40, "percentiles": (1, 99)}
    space = contrast_space(volume, mask, **recipe, affine=affine)
    turn, _ = axial_turns(affine)
    inside = foreground_mask(turn(volume)) if mask is None else turn(mask)
    images, shares = principal_components(turn(scale_intensities(volume, mask, affine=affine)), inside, 3)
    first, last = np.argwhere(inside).min(axis=0), np.argwhere(inside).max(axis=0) + 1
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    assert inside[box].size < inside.size
    expected = denoise(np.ascontiguousarray(images[box]), inside[box], 40)[inside[box]]
    np.testing.assert_array_equal(space.features, expected)
    np.testing.assert_array_equal(space.explained_variance, shares)


def test_mask_is_found_when_none_is_given():
    volume, tissue = phantom()
    assert ((constraint_map(volume, clusters=4) > 0) != (tissue > 0)).mean() < 1e-3


def test_same_seed_same_map_and_the_input_is_left_alone():
    volume, tissue = phantom()
    before = volume.copy()
    first = constraint_map(volume, tissue > 0, clusters=12, seed=3)
    np.testing.assert_array_equal(constraint_map(volume, tissue > 0, clusters=12, seed=3), first)
    np.testing.assert_array_equal(volume, before)


def test_unit_and_what_lies_far_outside_the_mask_do_not_matter():
    volume, tissue = phantom()
    mask = tissue > 0
    expected = constraint_map(volume, mask, clusters=4)
    np.testing.assert_array_equal(constraint_map(volume * np.float32(16), mask, clusters=4), expected)
    disturbed = volume.copy()
    disturbed[:2], disturbed[:, -2:] = 9999, 9999
    np.testing.assert_array_equal(constraint_map(disturbed, mask, clusters=4), expected)


def test_prepared_intensities_may_be_passed_too():
    volume, tissue = phantom()
    mask = tissue > 0
    again = constraint_map(scale_intensities(volume, mask), mask, clusters=4)
    assert (again != constraint_map(volume, mask, clusters=4)).mean() < 1e-3


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR", "ASL", "SRA"])
def test_orientation_on_disk_does_not_matter(axes):
    volume, tissue = phantom()
    turned = orientations.ornt_transform(orientations.axcodes2ornt("PLS"), orientations.axcodes2ornt(axes))
    on_disk, mask = (orientations.apply_orientation(array, turned) for array in (volume, tissue > 0))
    affine = np.eye(4)
    affine[:3, :3] = [[(code == up) - (code == down) for code in axes] for up, down in ("RL", "AP", "SI")]
    assert "".join(nibabel.aff2axcodes(affine)) == axes
    expected = describe_constraint_map(volume, tissue > 0, **RECIPE)
    found = describe_constraint_map(on_disk, mask, **RECIPE, affine=affine)
    np.testing.assert_array_equal(found.classes, orientations.apply_orientation(expected.classes, turned))
    np.testing.assert_array_equal(found.components, orientations.apply_orientation(expected.components, turned))


def test_components_are_at_most_the_contrasts():
    volume, tissue = phantom()
    details = describe_constraint_map(volume[..., :2], tissue > 0, **(RECIPE | {"components": 4}))
    assert details.components.shape == (*SHAPE, 2)
    assert (
        len(describe_constraint_map(volume, tissue > 0, **(RECIPE | {"components": 1})).space.explained_variance) == 3
    )


@pytest.mark.parametrize("shape", [(40, 36, 1), (1, 36, 8), (40, 1, 1)])
def test_thin_volumes(shape):
    volume, tissue = phantom()
    part = tuple(slice(8, 8 + n) if n == 1 else slice(None) for n in shape[:2])
    part = (*part, slice(0, shape[2]))
    classes = constraint_map(volume[part], tissue[part] > 0, clusters=3)
    assert classes.shape == shape
    np.testing.assert_array_equal(classes > 0, tissue[part] > 0)


def test_fewer_values_than_clusters_give_fewer_classes():
    values = np.float32([[10, 1], [20, 7], [30, 2]])
    mask = np.ones((6, 6, 3), bool)
    volume = np.broadcast_to(values[np.arange(3)], (6, 6, 3, 2)).copy()  # constant slices: nothing to smooth
    classes = constraint_map(volume, mask, clusters=20, percentiles=(0, 100))
    np.testing.assert_array_equal(np.unique(classes), [1, 2, 3])
    assert all(len(np.unique(classes[..., k])) == 1 for k in range(3))


def test_flat_foreground_is_one_class():
    mask = np.zeros((6, 6, 3), bool)
    mask[1:5, 1:5] = True
    details = describe_constraint_map(np.full((6, 6, 3, 2), 5.0), mask, **RECIPE)
    np.testing.assert_array_equal(details.classes, mask)
    assert details.inertia == 0 and not details.space.explained_variance.any()


def test_values_that_only_the_last_voxels_hold_make_classes_too():
    features = np.repeat(np.float32([3, 1, 2]), (1000, 1, 1))[:, None]
    labels, sizes, inertia = cluster(features, 2, seed=0)
    assert sizes.sum() == 1002 and len(sizes) == 2 and inertia > 0
    labels, sizes, inertia = cluster(features, 3, seed=0)
    np.testing.assert_array_equal(labels, np.repeat([3, 1, 2], (1000, 1, 1)))
    np.testing.assert_array_equal(sizes, [1, 1, 1000])
    assert inertia == 0


def test_a_centre_without_voxels_is_no_class(monkeypatch):
    class ThreeCentres:
        cluster_centers_ = np.float32([[0.0], [0.4], [1.0]])

        def __init__(self, *_, **__):
            pass

        def fit(self, sample):
            return self

    monkeypatch.setattr(constraint_maps, "KMeans", ThreeCentres)
    features = np.concatenate([np.linspace(0, 0.1, 9), np.linspace(0.9, 1, 5)]).astype(np.float32)[:, None]
    labels, sizes, _ = cluster(features, 3, seed=0)
    np.testing.assert_array_equal(labels, np.repeat([1, 2], [9, 5]))
    np.testing.assert_array_equal(sizes, [9, 5])


def test_more_than_255_classes_need_a_wider_integer():
    features = np.arange(300, dtype=np.float32)[:, None]
    labels, sizes, inertia = cluster(features, 400, seed=0)
    assert labels.dtype == np.uint16 and inertia == 0
    np.testing.assert_array_equal(labels, np.arange(1, 301))
    np.testing.assert_array_equal(sizes, np.ones(300))


@pytest.mark.parametrize("contrasts", [2, 3, 5])
def test_principal_components_agree_with_scikit_learn(contrasts):
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(contrasts)
    volume = (rng.random((9, 8, 7, contrasts)) @ rng.normal(0, 1, (contrasts, contrasts))).astype(np.float32)
    mask = rng.random((9, 8, 7)) > 0.3
    images, explained = principal_components(volume, mask, contrasts)
    reference = PCA(svd_solver="full").fit(volume[mask].astype(np.float64))
    expected = reference.transform(volume.reshape(-1, contrasts).astype(np.float64)).reshape(volume.shape)
    expected *= np.where(reference.components_.sum(axis=1) < 0, -1, 1)
    np.testing.assert_allclose(images, expected, atol=1e-4)
    np.testing.assert_allclose(explained, reference.explained_variance_ratio_, atol=1e-6)


def test_sign_of_a_component_follows_the_sum_of_the_contrasts():
    volume, tissue = phantom()
    images, _ = principal_components(volume, tissue > 0, 1)
    assert np.corrcoef(images[tissue > 0, 0], volume[tissue > 0].sum(axis=-1))[0, 1] > 0


@pytest.mark.parametrize("weight", [40, 100])
def test_denoising_solves_each_slice_as_another_algorithm_does(weight):
    from skimage.restoration import denoise_tv_chambolle

    rng = np.random.default_rng(1)
    images = rng.random((20, 18, 4, 2), dtype=np.float32) * np.float32([1, 0.2])
    denoised = denoise(images, np.ones(images.shape[:3], bool), weight)
    assert denoised.dtype == np.float32
    for z in range(4):
        for p in range(2):
            # Chambolle minimises TV + (u - f)^2 / (2 v); scikit-image's Bregman code, unlike its manual, has w = 1 / v.
            image = images[..., z, p] / np.ptp(images[..., 0])
            expected = denoise_tv_chambolle(image, 1 / weight, eps=1e-8, max_num_iter=2000)
            np.testing.assert_allclose(denoised[..., z, p], expected, atol=0.05)
            assert np.sqrt(np.mean((denoised[..., z, p] - expected) ** 2)) < 0.02


def test_the_edge_of_the_volume_is_denoised_like_its_middle():
    images = np.random.default_rng(2).random((12, 12, 3, 1), dtype=np.float32)
    change = np.abs(denoise(images, np.ones(images.shape[:3], bool), 1e4) * np.ptp(images) - images)
    assert change.max() < 0.1


def test_denoising_lowers_noise_and_keeps_edges():
    rng = np.random.default_rng(2)
    step = np.zeros((30, 30, 3, 1), np.float32)
    step[15:] = 1
    noisy = step + rng.normal(0, 0.02, step.shape).astype(np.float32)
    mask = np.ones(step.shape[:3], bool)
    denoised = denoise(noisy, mask, 40) * np.ptp(noisy)
    assert denoised[:13].std() < 0.6 * noisy[:13].std()
    assert np.abs(denoised[16:].mean() - denoised[:14].mean() - 1) < 0.03
    weak = denoise(noisy, mask, 1000) * np.ptp(noisy)
    assert np.abs(weak - noisy).mean() < np.abs(denoised - noisy).mean(), "a higher weight smooths less"


def test_clusters_are_nearest_centres_by_hand():
    rng = np.random.default_rng(3)
    features = np.concatenate([rng.normal(m, 0.05, (60, 2)) for m in (0.0, 0.6, 1.3)]).astype(np.float32)
    rng.shuffle(features)
    labels, sizes, inertia = cluster(features, 3, seed=0)
    centres = [features[labels == k].mean(axis=0) for k in (1, 2, 3)]
    nearest = [1 + min(range(3), key=lambda k, f=f: float(np.sum((f - centres[k]) ** 2))) for f in features]
    np.testing.assert_array_equal(labels, nearest)
    np.testing.assert_array_equal(sizes, [60, 60, 60])
    assert inertia == pytest.approx(
        sum(((f - centres[k - 1]) ** 2).sum() for f, k in zip(features, labels, strict=True))
    )


def test_centres_come_from_a_sample_and_every_voxel_is_assigned(monkeypatch):
    monkeypatch.setattr(constraint_maps, "SAMPLE_VOXELS", 200)
    rng = np.random.default_rng(4)
    features = np.concatenate([rng.normal(m, 0.02, (1000, 1)) for m in (0.0, 1.0)]).astype(np.float32)
    labels, sizes, _ = cluster(features, 2, seed=5)
    np.testing.assert_array_equal(labels, np.repeat([1, 2], 1000))
    np.testing.assert_array_equal(sizes, [1000, 1000])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(SHAPE, bool), "no foreground voxel"),
        (np.ones((40, 36, 7), bool), r"\(40, 36, 7\) differs from the volume's \(40, 36, 8\)"),
    ],
)
def test_mask_that_cannot_be_used_is_refused(mask, message):
    with pytest.raises(InputError, match=message):
        constraint_map(phantom()[0], mask)
