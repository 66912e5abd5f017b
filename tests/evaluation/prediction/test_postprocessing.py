"""Connected components of label maps."""

import numpy as np
import pytest

from evaluation.prediction.postprocessing import keep_components, voxels_in


def components_by_hand(is_class):
    """Return sets of voxels connected by faces, edges or corners, found by walking."""
    left, found = {tuple(voxel) for voxel in np.argwhere(is_class)}, []
    while left:
        queue, component = [left.pop()], set()
        while queue:
            voxel = queue.pop()
            component.add(voxel)
            near = {tuple(np.add(voxel, np.subtract(step, 1))) for step in np.ndindex(3, 3, 3)} & left
            left -= near
            queue += near
        found.append(component)
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("largest", "smallest"), [(True, 0), (False, 3), (True, 3), (False, 0)])
def test_what_stays_is_what_walking_finds(seed, largest, smallest):
    classes = np.random.default_rng(seed).choice(3, (7, 6, 5), p=[0.8, 0.15, 0.05]).astype(np.uint8)
    before, cleaned = classes.copy(), keep_components(classes, [1], largest=largest, min_voxels=smallest)
    np.testing.assert_array_equal(classes, before)
    parts = components_by_hand(classes == 1)
    most = max(map(len, parts))
    if largest:
        assert len(components_by_hand(cleaned == 1)) == (most >= smallest)
        assert np.sum(cleaned == 1) == most * (most >= smallest)
    else:
        kept = [part for part in parts if len(part) >= smallest]
        assert {tuple(voxel) for voxel in np.argwhere(cleaned == 1)} == set().union(*kept)
    np.testing.assert_array_equal(cleaned == 2, classes == 2)  # not requested
    assert not np.any(cleaned[classes == 0])


def test_voxels_that_touch_at_a_corner_hang_together():
    classes = np.zeros((4, 4, 4), np.uint8)
    classes[0, 0, 0] = classes[1, 1, 1] = 1
    classes[3, 3, 3] = 1
    cleaned = keep_components(classes, [1], largest=True)
    assert np.sum(cleaned) == 2 and not cleaned[3, 3, 3]


def test_of_equal_components_one_stays_and_absent_classes_do_no_harm():
    classes = np.zeros((5, 1, 1), np.uint8)
    classes[[0, 4]] = 2
    cleaned = keep_components(classes, [1, 2], largest=True)
    np.testing.assert_array_equal(cleaned.ravel(), [2, 0, 0, 0, 0])


@pytest.mark.parametrize(("volume_ml", "voxels"), [(0.024, 1), (0.025, 2), (0.24, 10), (1.0, 42)])
def test_a_volume_in_voxels_is_rounded_up(volume_ml, voxels):
    affine = np.diag([-2.0, 3.0, 4.0, 1.0])  # 0.024 mL
    affine[0, 1] = 0.7  # a shear does not change the volume
    assert voxels_in(volume_ml, affine) == voxels
