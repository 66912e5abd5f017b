"""Synthesised contrasts return to their voxels for any orientation, windows and field of view."""

import nibabel
import numpy as np
import pytest

from data.geometry import SliceGrid
from evaluation.prediction.synthesis import synthesise_subject

SHAPE = (14, 11, 9)
TURN = np.radians(20)
OBLIQUE = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
ORIENTATIONS = ["RAS", "LPS", "LAS", "PIR", "SRA"]
WINDOWS = {"2D": (8, 8), "3D": (8, 4, 4), "larger": (16, 16, 16), "2D larger": (24, 16), "one slice": (8, 8, 1)}


class Model:
    """Stands in for a network: swaps the channels of its windows, and records them."""

    def __init__(self, change=lambda windows: windows[..., ::-1]):
        self.change, self.asked = change, []

    def predict_on_batch(self, windows):
        self.asked.append(windows.shape)
        return self.change(windows)


def scan(codes="RAS", spacing=(2.0, 1.0, 5.0), seed=0):
    """Return a random volume `(X, Y, Z, 2)` in an orientation, on an oblique grid, and its affine."""
    affine = np.eye(4)
    affine[:3, :3] = OBLIQUE @ np.diag(spacing)
    affine[:3, 3] = [-20, 7, 3]
    values = np.random.default_rng(seed).random((*SHAPE, 2)).astype(np.float32)
    orientations = nibabel.orientations
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(codes))
    image = nibabel.Nifti1Image(values, affine).as_reoriented(turn)
    assert nibabel.aff2axcodes(image.affine) == tuple(codes)
    return np.asarray(image.dataobj), image.affine


def synthesise(model, volume, affine, crop, pixel_size=None, image_size=(16, 16), **windows):
    grid = SliceGrid(volume.shape[:3], affine, pixel_size, image_size)
    made = synthesise_subject(
        model, grid.to_slices(volume), grid, crop, **({"overlap": 0.5, "batch_size": 3} | windows)
    )
    return made, grid


@pytest.mark.parametrize("crop", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_voxel_is_its_own(codes, crop):
    (volume, affine), model = scan(codes), Model()
    made, _ = synthesise(model, volume, affine, crop)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, volume[..., ::-1], atol=1e-6)
    assert set(model.asked) == {(3, *crop, 2)}, "one shape, so that the network compiles once"


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_model_sees_axial_slices_as_radiologists_hang_them(codes):
    volume, affine = scan(codes)
    corner = Model(lambda windows: np.where(np.arange(16)[:, None] < 8, windows, 0))
    made, grid = synthesise(corner, volume, affine, (16, 16))
    # The left half of the image remains, which is the right half of the patient: x > 0 in RAS.
    places = np.moveaxis(np.indices(volume.shape[:3]), 0, -1) - (np.array(volume.shape[:3]) - 1) / 2
    patient_right = (places @ (OBLIQUE.T @ affine[:3, :3]).T)[..., 0]
    np.testing.assert_allclose(made[patient_right > 0], volume[patient_right > 0], atol=1e-6)
    assert not made[patient_right < 0].any()
    assert grid.image_size == (16, 16)


@pytest.mark.parametrize("crop", [(8, 8), (8, 8, 4)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA"])
def test_what_lies_outside_the_slices_is_zero_and_the_rest_in_its_place(codes, crop):
    volume, affine = scan(codes)
    made, grid = synthesise(Model(), volume, affine, crop, image_size=(8, 8))
    inside = grid.to_volume(np.ones((grid.slices, 8, 8), np.uint8), order=0) > 0
    assert inside.sum() == 8 * 8 * 9 and inside.mean() < 0.5
    np.testing.assert_allclose(made[inside], volume[inside][:, ::-1], atol=1e-6)
    assert not made[~inside].any()


@pytest.mark.parametrize("crop", [(8, 8), (8, 8, 4)])
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR"])
def test_pixels_of_another_size_are_carried_back_to_the_voxels(codes, crop):
    volume, affine = scan(codes)
    places = np.moveaxis(np.indices(volume.shape[:3]), 0, -1)
    # A ramp along every axis is preserved by interpolation inside the field of view.
    volume[..., 0] = 0.5 + places @ [0.02, 0.03, 0.01] - 0.4
    made, grid = synthesise(Model(), volume, affine, crop, pixel_size=1.0, image_size=(32, 32))
    margin = tuple(slice(2, -2) for _ in range(3))
    np.testing.assert_allclose(made[margin][..., 1], volume[margin][..., 0], atol=1e-4)
    assert made.shape == volume.shape and grid.slices == 9


def test_what_the_network_makes_is_cut_off_where_training_targets_end():
    volume, affine = scan()
    made, _ = synthesise(Model(lambda windows: 3 * windows[..., :1] - 1), volume, affine, (8, 8, 4))
    np.testing.assert_allclose(made, np.clip(3 * volume[..., :1] - 1, 0, 1), atol=1e-5)
    assert (made == 0).any() and (made == 1).any()


@pytest.mark.parametrize(("crop", "calls"), [((16, 16), 9), ((16, 16, 4), 2)])
def test_the_number_of_outputs_and_of_windows_is_free(crop, calls):
    volume, affine = scan()
    model = Model(lambda windows: windows[..., [0, 1, 0]])
    made, _ = synthesise(model, volume, affine, crop, overlap=0.0, batch_size=1 if len(crop) == 2 else 2)
    np.testing.assert_allclose(made, volume[..., [0, 1, 0]], atol=1e-6)
    assert len(model.asked) == calls  # one window per slice; with four slices each, three windows in two batches
