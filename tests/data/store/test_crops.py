"""Crops: correct voxels, no unnecessary rows read, enough foreground, and clear messages if none fit."""

import pickle

import numpy as np
import pytest

from data.geometry import SliceGrid
from data.store.crops import draw_crops, held_if_small, open_volumes, region_of
from data.store.store import SliceStore, SubjectSlices
from tests.stores import write_store
from utils.checks import InputError

SIZE = (12, 10)
SLICES = {"sub-1": np.arange(9), "sub-2": np.array([2, 3, 4, 7, 8, 9, 10, 12]), "sub-3": np.array([], int)}


def make_subject(name):
    """Make images whose values encode scan slice, row and column; the foreground is one block."""
    index = SLICES[name]
    rows, columns = np.indices(SIZE)
    plane = (rows * SIZE[1] + columns) / 256
    images = np.stack([index[:, None, None] + plane, np.broadcast_to(plane, (len(index), *SIZE))], axis=-1)
    maps = np.zeros((len(index), *SIZE), int)
    maps[:, 6:11, 1:5] = 3 + index[:, None, None] % 2
    grid = SliceGrid((10, 12, 20), np.eye(4), None, SIZE)
    return SubjectSlices(name, grid, index, images.astype("float32"), {None: maps, "t2": 2 * maps})


@pytest.fixture
def store(tmp_path):
    form = {"contrasts": ["t1", "t2"], "image_size": SIZE, "attributes": {"clusters": 20}, "spaces": ["t2"]}
    write_store(tmp_path / "pretrain_train.h5", [make_subject(name) for name in SLICES], **form)
    return SliceStore(tmp_path / "pretrain_train.h5")


@pytest.mark.parametrize("is_held", [False, True])
def test_a_region_holds_the_voxels_of_the_scan(store, is_held):
    volumes = open_volumes(store, ["sub-2", "sub-1"], ["t2", "t1"])
    assert [volume.subject for volume in volumes] == ["sub-2", "sub-1"]
    volume = volumes[0].held() if is_held else volumes[0]
    assert volume.shape == (12, 10, 8, 2) and volume.longest_run == 4
    crop = volume[3:9, 2:10, 4:7]
    assert crop.shape == (6, 8, 3, 2) and crop.dtype == np.float32
    for row, column, place in np.ndindex(6, 8, 3):
        plane = ((row + 3) * 10 + column + 2) / 256
        expected = np.float16([plane, SLICES["sub-2"][place + 4] + plane])
        np.testing.assert_array_equal(crop[row, column, place], expected)
    classes = volume.constraint_map(region_of((3, 2, 4), (6, 8, 3)))
    assert classes.shape == (6, 8, 3) and classes.dtype == np.int32
    expected = np.zeros((6, 8, 3))
    expected[3:, :3] = [3, 4, 3]  # scan slices 8, 9, 10
    np.testing.assert_array_equal(classes, expected)
    np.testing.assert_array_equal(volume.constraint_map(region_of((3, 2, 4), (6, 8, 3)), "t2"), 2 * expected)


def test_only_the_rows_that_are_needed_are_read(store, monkeypatch):
    volume = open_volumes(store, ["sub-2"], ["t1"])[0]
    asked = []
    for name in ("images", "constraint_maps"):
        original = getattr(store, name)
        monkeypatch.setattr(
            store, name, lambda *a, original=original, name=name: asked.append((name, *a)) or original(*a)
        )
    volume[0:2, 0:2, 3:6]
    volume.constraint_map((slice(0, 2), slice(0, 2), slice(5, 7)))
    assert [
        (name, [int(row) for row in next(a for a in args if isinstance(a, np.ndarray))]) for name, *args in asked
    ] == [
        ("images", [12, 13, 14]),  # sub-1 has rows 0 to 8
        ("constraint_maps", [14, 15]),
    ]
    held = volume.held()
    asked.clear()
    np.testing.assert_array_equal(held[0:2, 0:2, 3:6], volume[0:2, 0:2, 3:6])
    assert len(asked) == 1
    draw_crops(volume, (4, 4, 2), 5, np.random.default_rng(0))
    assert {name for name, *_ in asked[1:]} == {"constraint_maps"}
    assert all(len(args[0]) == 2 for _, *args in asked[1:])


@pytest.mark.parametrize(("spaces", "left_on_disk"), [((), {"t2"}), (("t2",), set()), ((None, "t2"), set())])
def test_a_volume_in_memory_holds_the_maps_of_the_spaces_asked_for(store, monkeypatch, spaces, left_on_disk):
    volume = open_volumes(store, ["sub-2"], ["t2", "t1"])[0]
    held, region = volume.held(*spaces), region_of((3, 2, 4), (6, 8, 3))
    read = []
    original = store.constraint_maps
    monkeypatch.setattr(store, "constraint_maps", lambda rows, space: read.append(space) or original(rows, space))
    for space in (None, "t2"):
        found = held.constraint_map(region, space)
        assert found.dtype == np.int32 and set(read) <= left_on_disk
        np.testing.assert_array_equal(found, volume.constraint_map(region, space))
        read.clear()


def test_volumes_are_kept_in_memory_only_if_all_of_them_fit(store):
    volumes = open_volumes(store, ["sub-1", "sub-2"], ["t1", "t2"])
    stored = 2 * 12 * 10 * (9 + 8) * 2  # bytes: float16, two contrasts
    cases = (("auto", stored, True), ("auto", stored - 1, False), ("always", 0, True), ("never", stored, False))
    for resident, limit, is_held in cases:
        kept = held_if_small(volumes, "t2", resident=resident, limit=limit)
        assert [volume.subject for volume in kept] == ["sub-1", "sub-2"]
        for volume, other in zip(kept, volumes, strict=True):
            assert set(volume._held) == ({"images", None, "t2"} if is_held else set())
            np.testing.assert_array_equal(volume[2:5, 1:9, 3:6], other[2:5, 1:9, 3:6])


def test_a_volume_can_be_sent_to_another_process(store):
    volume = open_volumes(store, ["sub-1"], ["t1"])[0]
    expected = volume[0:3, 0:3, 0:3]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume))[0:3, 0:3, 0:3], expected)


def test_crops_never_cross_a_gap(store):
    volume = open_volumes(store, ["sub-2"], ["t1"], (4, 4, 3))[0]
    assert volume.starts(1).tolist() == list(range(8))
    assert volume.starts(3).tolist() == [0, 3, 4]
    assert volume.starts(5).tolist() == []
    corners = draw_crops(volume, (4, 4, 3), 300, np.random.default_rng(0), min_foreground=0)
    assert set(corners[:, 2]) == {0, 3, 4}
    for corner in corners[:20]:
        depth = volume[region_of(corner, (4, 4, 3))][0, 0, :, 0]
        np.testing.assert_allclose(np.diff(depth), 1, atol=0.01)


def test_without_a_condition_every_place_is_equally_likely(store):
    volume = open_volumes(store, ["sub-2"], ["t1"])[0].held()
    corners = draw_crops(volume, (11, 9, 4), 4000, np.random.default_rng(1), min_foreground=0)
    places, counts = np.unique(corners, axis=0, return_counts=True)
    np.testing.assert_array_equal(places, [[r, c, 3] for r in (0, 1) for c in (0, 1)])
    np.testing.assert_allclose(counts, 1000, rtol=0.12)


def foreground_by_hand(volume, corner, size):
    maps = volume.store.constraint_maps(volume.rows)
    row, column, place = corner
    inside = maps[place : place + size[2], row : row + size[0], column : column + size[1]]
    return np.count_nonzero(inside) / inside.size


def test_crops_show_enough_foreground(store):
    volume, size = open_volumes(store, ["sub-1"], ["t1"])[0], (4, 4, 2)
    share = lambda corner: foreground_by_hand(volume, corner, size)  # noqa: E731
    free = draw_crops(volume, size, 60, np.random.default_rng(2), min_foreground=0)
    aware = draw_crops(volume, size, 60, np.random.default_rng(2), min_foreground=0.5, draws=200)
    assert min(map(share, free)) == 0 and min(map(share, aware)) >= 0.5
    allowed = {(r, c) for r in range(9) for c in range(7) if share((r, c, 0)) >= 0.5}
    many = draw_crops(volume.held(), size, 1500, np.random.default_rng(3), min_foreground=0.5, draws=200)
    assert {(int(r), int(c)) for r, c, _ in many} == allowed


def test_where_no_draw_shows_enough_the_best_is_taken(store):
    volume, size = open_volumes(store, ["sub-1"], ["t1"])[0], (4, 4, 2)
    for seed in range(5):
        (found,) = draw_crops(volume, size, 1, np.random.default_rng(seed), min_foreground=1.1, draws=6)
        generator = np.random.default_rng(seed)
        drawn = [tuple(int(generator.integers(n)) for n in (9, 7, 8)) for _ in range(6)]
        assert foreground_by_hand(volume, found, size) == max(foreground_by_hand(volume, c, size) for c in drawn)
        assert tuple(found) in drawn


def test_the_same_seed_gives_the_same_crops(store):
    volume = open_volumes(store, ["sub-1"], ["t1"])[0]
    one, same, other = (draw_crops(volume, (4, 4, 2), 8, np.random.default_rng(seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_crop_larger_than_the_volume_names_subject_sizes_and_cure(store):
    with pytest.raises(InputError) as caught:
        open_volumes(store, ["sub-1", "sub-2", "sub-3"], ["t1"], (13, 10, 5))
    assert [line.replace(str(store.path), "STORE") for line in caught.value.lines] == [
        "sub-1: a crop of (13, 10, 5) does not fit into (12, 10) pixels and 9 packed slices (STORE); "
        "use a smaller crop",
        "sub-2: a crop of (13, 10, 5) does not fit into (12, 10) pixels and 8 packed slices, of which at most 4 follow "
        "one another without a gap (STORE); use a smaller crop, or lower slices.min_foreground and pack again",
        "sub-3: has no slices in STORE; leave it out, or lower slices.min_foreground",
    ]
    volume = open_volumes(store, ["sub-2"], ["t1"], (12, 10, 4))[0]
    with pytest.raises(InputError, match=r"sub-2: a crop of \(4, 11, 4\) does not fit"):
        draw_crops(volume, (4, 11, 4), 1, np.random.default_rng(0))


def test_reading_across_a_gap_is_refused(store):
    volume = open_volumes(store, ["sub-2"], ["t1"])[0]
    with pytest.raises(InputError, match="sub-2: the packed slices 4 to 8 of .* do not follow one another in the scan"):
        volume[0:2, 0:2, 2:5]
    assert volume[0:2, 0:2, 0:0].shape == (2, 2, 0, 1)


def test_unknown_contrasts_and_subjects_are_named(store):
    with pytest.raises(InputError, match="has no contrast 'flair', it holds t1, t2"):
        open_volumes(store, ["sub-1"], ["t1", "flair"])
    with pytest.raises(InputError, match="sub-9: is not in"):
        open_volumes(store, ["sub-1", "sub-9"], ["t1"])
