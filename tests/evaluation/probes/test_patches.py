"""Patches against loops over pixels, on a small store of rotated and flipped scans."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest

from data.geometry import SliceGrid
from data.layouts.subjects import find_subjects
from data.scans.volumes import write_nifti
from data.store.store import SliceStore, SubjectSlices
from evaluation.probes.patches import (
    TRUTH,
    Contents,
    Drawing,
    Regions,
    draw_balanced,
    find_truth,
    patch_means,
    patch_positions,
    sample_patches,
    true_parameters,
)
from tests.stores import write_store
from training.patches import assign_patch_classes
from utils.checks import InputError
from utils.config.data import Wanted

SHAPE, IMAGE = (14, 10, 3), (8, 12)
TURNED = np.array([[0, -2.0, 0, 9], [-2.0, 0, 0, 5], [0, 0, -5.0, 1], [0, 0, 0, 1]])
DRAWING, CONTENTS = Drawing(most_images=99, most_patches=999, seed=3), Contents(assign_patch_classes)
AFFINES = {"a": np.diag([2.0, 2.0, 5.0, 1.0]), "b": TURNED}


def means_by_hand(values, edge):
    height, width = values.shape
    return [
        np.mean([float(values[y + i, x + j]) for i in range(edge) for j in range(edge)])
        for y in range(0, height, edge)
        for x in range(0, width, edge)
    ]


@pytest.fixture
def dataset(tmp_path):
    """Return two subjects: true maps with air on one side, and the store packed from them."""
    generator, parts, truth = np.random.default_rng(0), [], {}
    for subject, affine in AFFINES.items():
        maps = {"true_t1": generator.uniform(300, 1500, SHAPE), "true_t2": generator.uniform(20, 200, SHAPE)}
        maps["true_pd"] = generator.uniform(50, 100, SHAPE)
        for values in maps.values():
            values[:5, :, 1] = 0
        for name, values in maps.items():
            write_nifti(tmp_path / subject / f"{name}.nii.gz", values.astype(np.float32), affine)
        write_nifti(tmp_path / subject / "t1.nii.gz", maps["true_t1"].astype(np.float32), affine)
        grid = SliceGrid(SHAPE, affine, None, IMAGE)
        plane = (grid.slices, *IMAGE)
        constraint, label = generator.integers(0, 6, plane), generator.integers(0, 3, plane).astype(np.uint8)
        constraint[:, :4] = np.maximum(constraint[:, :4], 1)
        images = generator.uniform(size=(*plane, 2))
        parts.append(SubjectSlices(subject, grid, np.arange(grid.slices), images, {None: constraint}, label))
        truth[subject] = maps
    path = tmp_path / "annotated.h5"
    write_store(path, parts, contrasts=["t1", "t2"], image_size=IMAGE, attributes={"clusters": 5})
    return tmp_path, SliceStore(path), truth


def sample(store, **changes):
    drawn = {key: changes.pop(key) for key in ("most_images", "most_patches", "seed", "crops") if key in changes}
    return sample_patches(store, ["a", "b"], ["t2"], 2, replace(DRAWING, **drawn), replace(CONTENTS, **changes))


@pytest.mark.parametrize("edge", [1, 2, 4])
def test_patch_means_are_those_of_a_loop_in_row_major_order(edge):
    maps = np.random.default_rng(edge).normal(size=(3, 8, 12, 2))
    expected = [[means_by_hand(one[..., feature], edge) for feature in range(2)] for one in maps]
    np.testing.assert_allclose(patch_means(maps, edge), np.swapaxes(expected, 1, 2), rtol=1e-5)
    np.testing.assert_allclose(patch_means(maps[..., 0], edge), [e[0] for e in expected], rtol=1e-5)


def test_patches_are_numbered_as_those_of_the_networks_and_of_the_classes():
    from keras import layers

    maps = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype("float32")
    pooled = np.asarray(layers.Reshape((-1, 3))(layers.AveragePooling2D(4)(maps)))
    np.testing.assert_allclose(patch_means(maps, 4), pooled, rtol=1e-4, atol=1e-6)
    blocks = np.arange(6).reshape(1, 2, 3).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(patch_means(blocks, 4), assign_patch_classes(blocks, 4))


def test_true_parameters_are_means_over_the_protons_of_a_patch(dataset):
    folder, store, truth = dataset
    rows = np.array([1, 2, 3, 4])  # 1 and 4 are the middle slices, which contain air
    files = find_truth(find_subjects(Wanted(folder, {"t1": "{subject}/t1.nii.gz"})), ["a", "b"])
    found, has_protons = true_parameters(Regions.of_slices(store, rows), 2, files)
    for place, (subject, number) in enumerate((("a", 1), ("a", 2), ("b", 0), ("b", 1))):
        grid = store.grid(subject)
        t1, t2, pd = (grid.to_slices(truth[subject][f"true_{name}"], order=0)[number] for name in ("t1", "t2", "pd"))
        protons = np.array(means_by_hand(pd, 2))
        np.testing.assert_allclose(found["PD"][place], protons, rtol=1e-5)
        with np.errstate(invalid="ignore"):
            for name, values in (("T1", t1), ("T2", t2)):
                expected = np.nan_to_num(np.array(means_by_hand(values * pd, 2)) / protons)
                np.testing.assert_allclose(found[name][place], expected, rtol=1e-4)
        np.testing.assert_array_equal(has_protons[place], np.array(means_by_hand(pd > 0, 2)) == 1)
    assert has_protons.any() and not has_protons.all()


def test_a_patch_across_an_edge_to_air_has_the_t1_of_its_tissue(dataset):
    """If pixels are coarser than voxels, averaging with the zeros of air would give a T1 that does not exist."""
    folder, store, _ = dataset
    grid = SliceGrid(SHAPE, AFFINES["a"], 3.7, IMAGE)
    plane = np.ones((3, *IMAGE), np.uint8)
    part = SubjectSlices("a", grid, np.arange(3), plane[..., None], {None: plane}, plane)
    write_store(folder / "coarse.h5", [part], contrasts=["t1"], image_size=IMAGE, attributes={"clusters": 5})
    pd = np.full(SHAPE, 80.0)
    pd[:5] = 0
    maps = {"T1": np.where(pd > 0, 900.0, 0), "T2": np.where(pd > 0, 60.0, 0), "PD": pd}
    files = {name: folder / f"flat_{file}" for name, file in TRUTH.items()}
    for name, file in files.items():
        write_nifti(file, maps[name].astype(np.float32), AFFINES["a"])
    found, has_protons = true_parameters(
        Regions.of_slices(SliceStore(folder / "coarse.h5"), np.arange(3)), 2, {"a": files}
    )
    some = found["PD"] > 0
    assert (found["PD"][some] < 79).any() and has_protons.any()
    np.testing.assert_allclose(found["T1"][some], 900, rtol=1e-4)
    np.testing.assert_allclose(found["T2"][some], 60, rtol=1e-4)


def test_sampled_patches_are_foreground_throughout_and_know_what_they_are(dataset):
    folder, store, _ = dataset
    patches = sample(store)
    maps, labels, images = store.constraint_maps(), store.labels(), store.images(["t2"])
    inside = {(s, p) for s, one in enumerate(maps) for p, share in enumerate(means_by_hand(one > 0, 2)) if share == 1}
    assert set(zip(patches.table["image"], patches.table["patch"], strict=True)) == inside
    for place, row in patches.table.iterrows():
        y, x = 2 * (row.patch // 6), 2 * (row.patch % 6)
        for name, found in (("constraint_class", maps), ("label", labels)):
            votes = np.bincount(found[row.image, y : y + 2, x : x + 2].ravel())
            assert row[name] == np.argmax(votes)
        assert row.subject == "ab"[row.image // 3]
        expected = [2 * (y + 1) / 8 - 1, 2 * (x + 1) / 12 - 1, 2 * (row.image % 3 + 0.5) / 3 - 1]
        np.testing.assert_allclose(patches.positions[place], expected)
    np.testing.assert_array_equal(patches.images, images)
    taken = patches.take(patch_means(images, 2))
    first = patches.table.iloc[0]
    assert taken[0, 0] == pytest.approx(means_by_hand(images[first.image, ..., 0], 2)[first.patch], rel=1e-5)


def test_with_truth_patches_without_protons_are_left_out(dataset):
    folder, store, _ = dataset
    truth = find_truth(find_subjects(Wanted(folder, {"t1": "{subject}/t1.nii.gz"})), ["a", "b"])
    with_truth, without = sample(store, truth=truth), sample(store)
    assert 0 < len(with_truth.table) < len(without.table)
    assert {"T1", "T2", "PD"} <= set(with_truth.table) and not {"T1"} & set(without.table)
    assert with_truth.table["T1"].between(300, 1500).all() and with_truth.table["T2"].between(20, 200).all()


def test_draws_are_limited_and_fixed_by_the_seed(dataset):
    store = dataset[1]
    few = sample(store, most_patches=12)
    assert len(few.table) == 12 and few.table["image"].is_monotonic_increasing
    np.testing.assert_array_equal(few.table, sample(store, most_patches=12).table)
    assert not few.table.equals(sample(store, most_patches=12, seed=4).table)
    one = sample(store, most_images=2)
    assert len(one.images) == 2 and set(one.table["image"]) == {0, 1}
    with pytest.raises(InputError, match="only 5 patches of 2 x 2 pixels are foreground throughout"):
        sample(store, most_patches=5)
    with pytest.raises(InputError, match="holds no slices of a part of the split; correct data.splits"):
        sample_patches(store, [], ["t2"], 2, DRAWING, CONTENTS)


def test_positions_reach_from_border_to_border(dataset):
    store = dataset[1]
    numbers = np.tile(np.arange(24), 6)
    positions = patch_positions(Regions.of_slices(store, np.repeat(np.arange(6), 24)), numbers, 2)
    np.testing.assert_allclose(positions.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(positions.max(axis=0), [1 - 1 / 4, 1 - 1 / 6, 1 - 1 / 3])


def test_true_maps_are_found_all_or_none(dataset):
    folder, _, _ = dataset
    contrasts = {"t1": "{subject}/t1.nii.gz"}
    truth = find_truth(find_subjects(Wanted(folder, contrasts)), ["b"])
    assert truth == {"b": {name: folder / "b" / file for name, file in TRUTH.items()}}
    (folder / "b" / "true_t2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b/true_t2.nii.gz: no such file, though other"):
        find_truth(find_subjects(Wanted(folder, contrasts)), ["a", "b"])
    for file in TRUTH.values():
        (folder / "b" / file).unlink(missing_ok=True)
    assert find_truth(find_subjects(Wanted(folder, contrasts)), ["b"]) is None
    with pytest.raises(InputError, match="c: has no scans below"):
        find_truth(find_subjects(Wanted(folder, contrasts)), ["a", "c"])


def test_true_maps_of_another_grid_are_refused(dataset):
    folder, store, _ = dataset
    truth = find_truth(find_subjects(Wanted(folder, {"t1": "{subject}/t1.nii.gz"})), ["a", "b"])
    for file in truth["b"].values():
        image = np.asarray(nibabel.load(file).dataobj)[:-1]
        write_nifti(file, image, AFFINES["b"])
    with pytest.raises(InputError, match=r"b: true maps are \(13, 10, 3\), the scans were \(14, 10, 3\)"):
        true_parameters(Regions.of_slices(store, np.arange(6)), 2, truth)


@pytest.fixture
def volumes(tmp_path):
    """Return two subjects of 9 and 8 slices with true maps, one rotated, without labels; the first lacks slice 4."""
    generator, parts, truth = np.random.default_rng(1), [], {}
    for subject, slices in (("a", 9), ("b", 8)):
        shape = (10, 9, slices)
        grid = SliceGrid(shape, AFFINES[subject], None, (8, 12))
        files = {name: tmp_path / subject / f"{name}.nii.gz" for name in TRUTH}
        maps = {name: generator.uniform(50, 100, shape).astype(np.float32) for name in TRUTH}
        for name, file in files.items():
            maps[name][2, 2, 2:4] = 0
            write_nifti(file, maps[name], AFFINES[subject])
        keep = np.array([n for n in range(grid.slices) if (subject, n) != ("a", 4)])
        classes = (generator.uniform(size=(slices, 8, 12)) > 0.02) * generator.integers(1, 6, (slices, 8, 12))
        images = generator.uniform(size=(slices, 8, 12, 2)).astype(np.float16)
        parts.append(SubjectSlices(subject, grid, keep, images[keep], {None: classes[keep]}))
        truth[subject] = (files, grid, maps, images, classes)
    form = {"contrasts": ["t1", "t2"], "image_size": (8, 12), "attributes": {"clusters": 5}}
    write_store(tmp_path / "volumes.h5", parts, **form)
    return SliceStore(tmp_path / "volumes.h5"), truth


def test_patches_of_crops_are_those_of_the_whole_volumes(volumes):
    """The reference cuts the content of each patch out of the volume at its recorded position."""
    store, truth = volumes
    files = {subject: found[0] for subject, found in truth.items()}
    crops = {"size": [4, 8, 4], "validation": 3, "min_foreground": 0.25}
    patches = sample(store, beside=["t1"], truth=files, crops=crops)
    assert patches.images.shape == (6, 4, 8, 4, 1) and "label" not in patches.table
    assert set(patches.table["subject"]) == {"a", "b"} and patches.table["patch"].max() < 16
    means = patches.take(patch_means(patches.images, 2, rank=3))
    for place, row in patches.table.iterrows():
        _, grid, maps, images, classes = truth[row.subject]
        y, x, z = np.rint((patches.positions[place] + 1) / 2 * (8, 12, grid.slices)).astype(int) - 1
        assert not (row.subject == "a" and z <= 4 < z + 2)  # no patch lies across the gap
        cube = (slice(z, z + 2), slice(y, y + 2), slice(x, x + 2))
        assert (classes[cube] > 0).all() and row.constraint_class == np.argmax(np.bincount(classes[cube].ravel()))
        assert means[place, 0] == pytest.approx(images[cube][..., 1].mean(dtype=float), abs=1e-4)
        assert row["contrast t1"] == pytest.approx(images[cube][..., 0].mean(dtype=float), abs=1e-4)
        t1, protons = (grid.to_slices(maps[name], order=0)[cube].astype(float) for name in ("T1", "PD"))
        assert (protons > 0).all() and row["PD"] == pytest.approx(protons.mean(), rel=1e-4)
        assert row["T1"] == pytest.approx((t1 * protons).sum() / protons.sum(), rel=1e-4)
    inside = patches.take(patch_means(patches.images > -1, 2, rank=3))
    assert len(patches.table) < 6 * 16 and (inside == 1).all()  # without those that show air or no protons


def test_crops_are_limited_and_fixed_by_the_seed(volumes):
    store, _ = volumes
    crops = {"size": [4, 4, 2], "validation": 5, "min_foreground": 0.25}
    drawing = replace(DRAWING, most_images=4, crops=crops)
    drawings = (replace(drawing, seed=seed) for seed in (3, 3, 4))
    first, again, other = (sample_patches(store, ["b"], ["t1"], 2, one, CONTENTS) for one in drawings)
    assert first.images.shape == (4, 4, 4, 2, 1)
    np.testing.assert_array_equal(first.images, again.images)
    assert first.table.equals(again.table) and not np.array_equal(first.images, other.images)
    with pytest.raises(InputError, match=r"only \d patches of 4 x 4 x 4 pixels are foreground throughout"):
        cubes = replace(drawing, crops=crops | {"size": [4, 4, 4]})
        sample_patches(store, ["b"], ["t1"], 4, cubes, CONTENTS)


def test_cubes_are_numbered_as_those_of_the_networks_and_of_the_classes():
    from keras import layers

    maps = np.random.default_rng(0).normal(size=(2, 4, 8, 6, 3)).astype("float32")
    pooled = np.asarray(layers.Reshape((-1, 3))(layers.AveragePooling3D(2)(maps)))
    np.testing.assert_allclose(patch_means(maps, 2, rank=3), pooled, rtol=1e-4, atol=1e-6)
    blocks = np.arange(24).reshape(1, 2, 4, 3).repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(patch_means(blocks, 2, rank=3), assign_patch_classes(blocks, 2))


def test_a_balanced_draw_shows_rare_classes_and_fills_up_with_the_rest():
    classes = np.array([0] * 900 + [1] * 80 + [2] * 5)
    drawn = draw_balanced(classes, 90, seed=0)
    assert np.bincount(classes[drawn]).tolist() == [55, 30, 5]
    assert len(set(drawn)) == 90 and (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, draw_balanced(classes, 90, seed=0))
    assert (drawn != draw_balanced(classes, 90, seed=1)).any()
    assert np.bincount(classes[draw_balanced(classes, 5000, seed=0)]).tolist() == [900, 80, 5]
    assert np.bincount(draw_balanced(np.ones(40, int), 10, seed=0)).sum() == 10
