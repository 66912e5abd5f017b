import numpy as np
import pytest

from training.batches import Batches, PartitionedBatches, assign_partitions, assign_patch_classes, draw_anchors
from utils.checks import InputError


def majority_by_hand(constraint_map, patch_px):
    rows = []
    for top in range(0, constraint_map.shape[0], patch_px):
        for left in range(0, constraint_map.shape[1], patch_px):
            values = constraint_map[top : top + patch_px, left : left + patch_px].ravel().tolist()
            rows.append(min(sorted(set(values)), key=lambda value: (-values.count(value), value)))
    return rows


@pytest.mark.parametrize("patch_px", [1, 2, 4])
def test_patch_classes_are_the_majority_in_row_major_order(patch_px):
    maps = np.random.default_rng(patch_px).integers(0, 4, (3, 8, 12))
    expected = [majority_by_hand(one, patch_px) for one in maps]
    np.testing.assert_array_equal(assign_patch_classes(maps, patch_px), expected)


def test_a_patch_half_background_is_background():
    np.testing.assert_array_equal(assign_patch_classes(np.array([[[0, 0], [7, 7]]]), 2), [[0]])


def test_anchors_are_distinct_foreground_patches():
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 3, (6, 40))
    anchors = draw_anchors(classes, 10, generator)
    assert anchors.shape == (6, 10) and anchors.dtype == np.int32
    for row, chosen in zip(classes, anchors, strict=True):
        assert len(set(chosen)) == 10 and (row[chosen] > 0).all()


def test_too_few_foreground_patches_leave_anchors_empty():
    classes = np.array([[0, 3, 0, 2], [0, 0, 0, 0]])
    anchors = draw_anchors(classes, 6, np.random.default_rng(0))
    assert sorted(anchors[0]) == [-1, -1, -1, -1, 1, 3]
    assert (anchors[1] == -1).all()


def test_every_foreground_patch_is_drawn_about_equally_often():
    classes = np.array([[0, 1, 1, 2, 0, 2, 1, 1]] * 3000)
    counts = np.bincount(draw_anchors(classes, 2, np.random.default_rng(1)).ravel(), minlength=8)
    assert counts[0] == counts[4] == 0
    np.testing.assert_allclose(counts[[1, 2, 3, 5, 6, 7]], 1000, rtol=0.12)


def rows_of_epochs(batches, epochs):
    rows = []
    for _ in range(epochs):
        rows.append([batches[step][0]["slice"].tolist() for step in range(len(batches))])
        batches.on_epoch_end()
    return rows


def test_training_batches_have_one_size_and_use_every_slice_equally():
    batches = Batches({"slice": np.arange(7)}, 4, seed=1)
    rows = rows_of_epochs(batches, 7)
    assert len(batches) == 2 and all(len(batch) == 4 for epoch in rows for batch in epoch)
    counts = np.bincount(np.ravel(rows), minlength=7)
    assert counts.tolist() == [8] * 7  # 7 epochs of 8 places are 8 passes over 7 slices


def test_a_batch_may_be_larger_than_the_set():
    assert sorted(Batches({"slice": np.arange(3)}, 6, seed=1)[0][0]["slice"]) == [0, 0, 1, 1, 2, 2]


def test_batches_depend_on_seed_epoch_and_step_only():
    def build(seed):
        draw = lambda rows, generator: {"noise": generator.random(len(rows))}  # noqa: E731
        return Batches({"slice": np.arange(20)}, 4, seed=seed, draw=draw)

    walked, jumped, other = build(5), build(5), build(6)
    rows_of_epochs(walked, 3)
    jumped.epoch = other.epoch = 3
    for name in ("slice", "noise"):
        np.testing.assert_array_equal(walked[2][0][name], jumped[2][0][name])
        assert not np.array_equal(walked[2][0][name], other[2][0][name])
    assert not np.array_equal(jumped[1][0]["noise"], jumped[2][0]["noise"])


def test_validation_is_one_fixed_pass():
    draw = lambda rows, generator: {"noise": generator.random(len(rows))}  # noqa: E731
    batches = Batches({"slice": np.arange(10)}, 4, seed=1, shuffle=False, draw=draw)
    first = [batches[step][0] for step in range(3)]
    batches.on_epoch_end()
    again = [batches[step][0] for step in range(3)]
    assert sorted(np.concatenate([batch["slice"] for batch in first])) == list(range(10))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["slice"], two["slice"])
        np.testing.assert_array_equal(one["noise"], two["noise"])


def test_parts_follow_the_order_of_the_slices_and_are_of_equal_size():
    subjects = np.repeat(["b", "a"], [10, 6])
    slices = np.concatenate([np.arange(10)[::-1] * 3, np.arange(6) + 40])  # stored from the top, with gaps
    parts = assign_partitions(subjects, slices, 4)
    for name in "ab":
        ordered = parts[subjects == name][np.argsort(slices[subjects == name])]
        assert (np.diff(ordered) >= 0).all()
        sizes = np.bincount(ordered, minlength=4)
        assert sizes.max() - sizes.min() <= 1
    with pytest.raises(InputError, match="a: 6 packed slices, fewer than n_partitions .7."):
        assign_partitions(subjects, slices, 7)


def partitioned(batch_size=6, volumes=5, shuffle=True, **options):
    subjects = np.repeat([f"sub-{v}" for v in range(volumes)], np.arange(volumes) + 3)  # 3, 4, ... slices
    slices = np.concatenate([np.arange(v + 3) for v in range(volumes)])
    arrays = {"image": np.arange(len(subjects)), "partition": assign_partitions(subjects, slices, 3)}
    return subjects, PartitionedBatches(arrays, batch_size, 7, subjects=subjects, shuffle=shuffle, **options)


def test_a_batch_holds_one_slice_of_each_part_of_each_of_its_volumes():
    subjects, batches = partitioned()
    counts = dict.fromkeys(subjects, 0)
    for epoch in range(5):
        batches.epoch = epoch
        for step in range(len(batches)):
            batch = batches[step][0]
            found = [(subjects[row], part) for row, part in zip(batch["image"], batch["partition"], strict=True)]
            names = {name for name, _ in found}
            assert len(names) == 2 and sorted(found) == sorted((name, part) for name in names for part in range(3))
            for name in names:
                counts[name] += 1
    assert sum(counts.values()) == 5 * len(batches) * 2
    assert max(counts.values()) - min(counts.values()) <= 1


def test_partitioned_batches_depend_on_epoch_and_step_only():
    _, one = partitioned()
    _, two = partitioned()
    two.epoch = one.epoch = 3
    forward, backward = [one.rows(step) for step in (0, 1, 2)], [two.rows(step) for step in (2, 1, 0)]
    np.testing.assert_array_equal(forward, backward[::-1])
    drawn = set()
    for epoch in range(40):
        one.epoch = epoch
        drawn |= {int(row) for step in range(len(one)) for row in one.rows(step)}
    assert drawn == set(range(one.slices))  # every slice of a part comes up


def test_partitioned_validation_is_fixed_and_uses_volumes_equally():
    subjects, batches = partitioned(shuffle=False)
    first = [batches.rows(step).tolist() for step in range(len(batches))]
    batches.on_epoch_end()
    assert first == [batches.rows(step).tolist() for step in range(len(batches))]
    counts = [np.sum(subjects[np.concatenate(first)] == name) for name in np.unique(subjects)]
    assert max(counts) - min(counts) <= 3  # three slices of one volume, where the last batch is filled up


def test_with_fewer_volumes_than_a_batch_asks_for_it_holds_all():
    subjects, batches = partitioned(batch_size=30, volumes=2)
    assert sorted(set(subjects[batches.rows(0)])) == ["sub-0", "sub-1"] and len(batches.rows(0)) == 6
