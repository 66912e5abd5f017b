import itertools
import math

import keras
import numpy as np
import pytest
from keras import ops

from models.projection import project_patches
from training.batches import Batches, PartitionedBatches, Rows, assign_partitions
from training.effective import PatchCounts
from training.patches import assign_patch_classes, draw_anchors, draw_compared
from utils.checks import InputError


def majority_by_hand(constraint_map, patch_px):
    classes = []
    for corner in itertools.product(*(range(0, size, patch_px) for size in constraint_map.shape)):
        values = constraint_map[tuple(slice(start, start + patch_px) for start in corner)].ravel().tolist()
        classes.append(min(sorted(set(values)), key=lambda value: (-values.count(value), value)))
    return classes


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 12)])
@pytest.mark.parametrize("patch_px", [1, 2, 4])
def test_patch_classes_are_the_majority_in_row_major_order(size, patch_px):
    maps = np.random.default_rng(patch_px).integers(0, 4, (3, *size))
    expected = [majority_by_hand(one, patch_px) for one in maps]
    np.testing.assert_array_equal(assign_patch_classes(maps, patch_px), expected)


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 12)])
def test_patches_come_in_the_order_of_the_network(size):
    patches = tuple(length // 4 for length in size)
    numbers = np.random.default_rng(0).permutation(np.prod(patches)).reshape(1, *patches)
    maps = np.kron(numbers, np.ones((1, *(4,) * len(size)), int))
    image = keras.Input((*size, 1))
    network = keras.Model(image, project_patches(image, 1, 4, seed=0))
    for number in (1, 2):
        network.get_layer(f"projection_conv_{number}").set_weights([np.ones((1,) * (len(size) + 2)), np.zeros(1)])
    means = ops.convert_to_numpy(network(maps[..., None].astype("float32")))
    np.testing.assert_array_equal(assign_patch_classes(maps, 4), means[..., 0])


def test_patches_that_do_not_fill_the_map_are_refused():
    with pytest.raises(InputError, match=r"patches of 4 pixels do not fill \(8, 8, 6\)"):
        assign_patch_classes(np.zeros((1, 8, 8, 6), int), 4)


def test_no_images_have_no_patches():
    assert assign_patch_classes(np.zeros((0, 8, 4), int), 4).shape == (0, 2)


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


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
def test_anchors_and_nearest_patches_as_shares_of_each_images_own_foreground(share):
    generator = np.random.default_rng(3)
    classes = generator.integers(1, 4, (8, 30))
    for row, background in enumerate([0, 30, 29, 28, 15, 20, 7, 13]):
        classes[row, generator.permutation(30)[:background]] = -1 if row == 4 else 0
    counts = PatchCounts(nearest_share=share, anchors_share=share)
    compared = draw_compared(classes, counts, counts.largest(30)["anchors"], generator)
    assert compared["nearest_patches"].dtype == np.int32
    for row, anchors, nearest in zip(classes, compared["anchors"], compared["nearest_patches"], strict=True):
        foreground = sum(one > 0 for one in row.tolist())
        expected = max(1, math.floor(share * foreground + 0.5))
        drawn = anchors[anchors >= 0]
        assert nearest == expected and len(drawn) == len(set(drawn)) == min(expected, foreground)
        assert (row[drawn] > 0).all()


def test_plain_numbers_give_the_same_draws_as_before():
    classes = np.random.default_rng(0).integers(0, 3, (6, 40))
    counts = PatchCounts(nearest=7, anchors=10)
    found = draw_compared(classes, counts, counts.largest(40)["anchors"], np.random.default_rng(1))
    assert set(found) == {"anchors"}
    np.testing.assert_array_equal(found["anchors"], draw_anchors(classes, 10, np.random.default_rng(1)))


def test_a_share_draws_every_foreground_patch_about_equally_often():
    classes = np.array([[0, 1, 1, 2, 0, 2, 1, 1]] * 3000)
    counts = PatchCounts(nearest=1, anchors_share=1 / 3)
    drawn = draw_compared(classes, counts, 6, np.random.default_rng(1))["anchors"]
    assert drawn.shape == (3000, 6)
    np.testing.assert_allclose(np.bincount(drawn[drawn >= 0], minlength=8)[[1, 2, 3, 5, 6, 7]], 1000, rtol=0.12)


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
    assert counts.tolist() == [8] * 7  # 7 epochs of 8 slices are 8 passes over 7 slices


def test_a_batch_may_be_larger_than_the_set():
    assert sorted(Batches({"slice": np.arange(3)}, 6, seed=1)[0][0]["slice"]) == [0, 0, 1, 1, 2, 2]


def add_noise(batch, generator):
    return batch | {"noise": generator.random(len(next(iter(batch.values()))))}


def test_batches_depend_on_seed_epoch_and_step_only():
    def build(seed):
        return Batches({"slice": np.arange(20)}, 4, seed=seed, finish=add_noise)

    walked, jumped, other = build(5), build(5), build(6)
    rows_of_epochs(walked, 3)
    jumped.epoch = other.epoch = 3
    for name in ("slice", "noise"):
        np.testing.assert_array_equal(walked[2][0][name], jumped[2][0][name])
        assert not np.array_equal(walked[2][0][name], other[2][0][name])
    assert not np.array_equal(jumped[1][0]["noise"], jumped[2][0]["noise"])


def test_validation_is_one_fixed_pass():
    batches = Batches({"slice": np.arange(10)}, 4, seed=1, shuffle=False, finish=add_noise)
    first = [batches[step][0] for step in range(3)]
    batches.on_epoch_end()
    again = [batches[step][0] for step in range(3)]
    assert sorted(np.concatenate([batch["slice"] for batch in first])) == list(range(10))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one["slice"], two["slice"])
        np.testing.assert_array_equal(one["noise"], two["noise"])


@pytest.mark.parametrize("parts", [1, 3, 4, 6])
def test_parts_follow_the_order_of_the_slices_and_are_of_equal_size(parts):
    subjects = np.repeat(["b", "a"], [10, 6])
    slices = np.concatenate([np.arange(10)[::-1] * 3, np.arange(6) + 40])  # stored from the top, with gaps
    shuffled = np.random.default_rng(0).permutation(16)
    subjects, slices = subjects[shuffled], slices[shuffled]
    found = assign_partitions(subjects, slices, parts)
    assert found.dtype == np.int32
    for name in "ab":
        ordered = found[subjects == name][np.argsort(slices[subjects == name])]
        np.testing.assert_array_equal(ordered, [rank * parts // len(ordered) for rank in range(len(ordered))])
        sizes = np.bincount(ordered, minlength=parts)
        assert len(sizes) == parts and sizes.max() - sizes.min() <= 1


def test_volumes_with_fewer_slices_than_parts_are_all_named():
    with pytest.raises(InputError) as caught:
        assign_partitions(np.array([0, 7, 7, 2, 2, 2, 2]), np.arange(7), 3)
    assert [line[:40] for line in caught.value.lines] == [
        "0: 1 packed slices, fewer than n_partiti",
        "7: 2 packed slices, fewer than n_partiti",
    ]


def partitioned(batch_size=6, volumes=5, shuffle=True, **options):
    subjects = np.repeat([f"sub-{v}" for v in range(volumes)], np.arange(volumes) + 3)  # 3, 4, ... slices
    slices = np.concatenate([np.arange(v + 3) for v in range(volumes)])
    shuffled = np.random.default_rng(0).permutation(len(subjects))
    subjects, slices = subjects[shuffled], slices[shuffled]
    arrays = {"image": np.arange(len(subjects)), "partition": assign_partitions(subjects, slices, 3)}
    return subjects, PartitionedBatches(arrays, batch_size, 7, subjects=subjects, shuffle=shuffle, **options)


def all_rows(batches, epochs=1):
    """Return the slice numbers in every batch of the next epochs."""
    found = []
    for _ in range(epochs):
        found += [batches[step][0]["image"].tolist() for step in range(len(batches))]
        batches.on_epoch_end()
    return found


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [3, 6, 9, 12, 15])
def test_a_batch_holds_one_slice_of_each_part_of_each_of_its_volumes(batch_size, shuffle):
    subjects, batches = partitioned(batch_size, shuffle=shuffle, steps=13)
    partitions = batches.arrays["partition"]
    for step, rows in enumerate(all_rows(batches, epochs=4)):
        np.testing.assert_array_equal(batches[step % 13][0]["partition"], partitions[batches.rows(step % 13)])
        names = {subjects[row] for row in rows}
        assert len(names) == batch_size // 3 and len(rows) == batch_size
        found = sorted((subjects[row], partitions[row]) for row in rows)
        assert found == sorted(itertools.product(names, range(3)))


@pytest.mark.parametrize("batch_size", [6, 9, 12])
def test_every_volume_is_used_equally_often_at_any_time(batch_size):
    subjects, batches = partitioned(batch_size)
    counts = dict.fromkeys(subjects, 0)
    for rows in all_rows(batches, epochs=12):
        for row in rows:
            counts[subjects[row]] += 1
        assert max(counts.values()) - min(counts.values()) <= 3  # three slices of a volume at a time


def test_volumes_meet_in_changing_company_and_slices_of_a_part_come_up_equally_often():
    subjects, batches = partitioned(6, steps=3000)
    rows = all_rows(batches)
    pairs = {tuple(sorted({subjects[row] for row in batch})) for batch in rows}
    assert len(pairs) == 10  # every pair of five volumes
    drawn, expected = np.bincount(np.ravel(rows)), np.empty(batches.slices)
    for row in range(batches.slices):
        is_same = (subjects == subjects[row]) & (batches.arrays["partition"] == batches.arrays["partition"][row])
        expected[row] = 3000 * 2 / 5 / is_same.sum()
    np.testing.assert_allclose(drawn, expected, rtol=0.15)


def test_partitioned_batches_depend_on_seed_epoch_and_step_only():
    walked, jumped = (
        partitioned(finish=lambda batch, generator: batch | {"noise": generator.random()})[1] for _ in range(2)
    )
    before = [all_rows(walked) for _ in range(3)]
    jumped.epoch = 3  # as a resumed run sets it
    for step in (2, 0, 1):
        assert walked[step][0]["image"].tolist() == jumped[step][0]["image"].tolist()
        assert walked[step][0]["noise"] == jumped[step][0]["noise"]
    assert all_rows(walked) not in before
    walked.epoch = 3
    jumped.seed = 8
    assert any((walked.rows(step) != jumped.rows(step)).any() for step in range(3))


@pytest.mark.parametrize(("batch_size", "volumes"), [(3, 5), (6, 5), (9, 5), (12, 4), (30, 2)])
def test_partitioned_validation_is_fixed_shows_every_slice_and_visits_volumes_equally(batch_size, volumes):
    subjects, batches = partitioned(batch_size, volumes, shuffle=False)
    first, again = all_rows(batches), all_rows(batches)
    assert first == again
    assert set(np.ravel(first)) == set(range(batches.slices))
    counts = [int(np.sum(subjects[np.ravel(first)] == name)) for name in np.unique(subjects)]
    assert len(set(counts)) == 1
    partitions = batches.arrays["partition"]
    for row in range(batches.slices):  # within a part, no slice is shown two times more than another
        is_same = np.flatnonzero((subjects == subjects[row]) & (partitions == partitions[row]))
        seen = np.bincount(np.ravel(first), minlength=batches.slices)[is_same]
        assert seen.max() - seen.min() <= 1


def test_with_fewer_volumes_than_a_batch_asks_for_it_holds_all():
    subjects, batches = partitioned(batch_size=30, volumes=2)
    assert sorted(set(subjects[batches.rows(0)])) == ["sub-0", "sub-1"] and len(batches.rows(0)) == 6


def test_a_batch_size_that_parts_do_not_divide_is_refused():
    with pytest.raises(InputError, match=r"batch_size: 8 must be a multiple of n_partitions \(3\)"):
        partitioned(batch_size=8)


def test_stacked_steps_are_the_same_batches_and_a_smaller_last_one_is_separate():
    def contents(per_dispatch, **options):
        arrays = {"image": Rows(np.arange(23.0), np.arange(22, 0, -1)), "number": np.arange(22)}
        made = Batches(arrays, 4, 3, finish=add_noise, **options)
        made.per_dispatch = per_dispatch
        kinds = [made.kind(number) for number in range(len(made))]
        return kinds, [made[number][0] for number in range(len(made))]

    for options, sizes in (({"steps": 7}, [3, 3, 1]), ({"shuffle": False}, [3, 2, 1])):
        kinds, single = contents(1, **options)
        assert {steps for steps, _ in kinds} == {1}
        stacked_kinds, stacked = contents(3, **options)
        assert [steps for steps, _ in stacked_kinds] == sizes
        unstacked = [
            {name: values[number] for name, values in dispatch["steps"].items()}
            for dispatch in stacked
            for number in range(len(dispatch["steps"]["image"]))
        ]
        for expected, found in zip(single, unstacked, strict=True):
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name], values)
    assert stacked_kinds[-1] == (1, False) and stacked_kinds[-2] == (2, True)


def test_a_batch_of_slices_on_the_device_names_their_rows_and_brings_the_rest():
    index = np.array([5, 3, 8, 1])
    arrays = {"image": Rows(np.arange(10.0), index), "number": index * 10}
    sent = Batches(arrays, 4, 3, on_device=["image"], shuffle=False)[0][0]
    brought = Batches(arrays, 4, 3, shuffle=False)[0][0]
    assert set(sent) == {"rows", "number"} and sent["rows"].dtype == np.int32
    np.testing.assert_array_equal(sent["rows"], brought["image"])
    np.testing.assert_array_equal(sent["number"], 10 * sent["rows"])
