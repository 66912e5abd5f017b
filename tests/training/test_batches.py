import numpy as np
import pytest

from training.batches import Batches, assign_patch_classes, draw_anchors


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
