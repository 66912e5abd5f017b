"""Unusual but valid scans, which must give the same results as the same tissue in a plain file.

The maps of step 1 and the slices of step 2 are compared voxel by voxel with those of the plain cohort.
"""

import shutil

import nibabel
import numpy as np
import pytest
from nibabel import orientations

from data.store.store import SliceStore
from tests.bad_input.harness import run
from tests.cohort import AFFINE, SHAPE, SUBJECTS, save, volumes, write_cohort

# A third class would split noise, which depends on rounding. A mask is given, because the detected foreground
# depends slightly on the order of the voxels.
GIVEN = ["--set", "constraint_maps.clusters=2", "data.mask='{subject}/mask.nii*'"]
OBLIQUE = nibabel.eulerangles.euler2mat(z=0.2, y=-0.15, x=0.1)


def as_code(code):
    """Reorder or reverse the stored axes without changing world coordinates."""

    def store(path, array):
        turn = orientations.ornt_transform(orientations.io_orientation(AFFINE), orientations.axcodes2ornt(code))
        affine = AFFINE @ orientations.inv_ornt_aff(turn, array.shape)
        save(path, orientations.apply_orientation(array, turn), affine)

    return store


def oblique(path, array):
    affine = AFFINE.copy()
    affine[:3, :3] = OBLIQUE @ affine[:3, :3]
    save(path, array, affine)


def big_endian(path, array):
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(array.dtype.newbyteorder(">"))
    nibabel.save(nibabel.Nifti1Image(array, AFFINE, header), path)


def nifti_2(path, array):
    save(path, array, kind=nibabel.Nifti2Image)


def trailing_axes(path, array):
    save(path, array[..., None, None])


def doubles(path, array):
    save(path, array.astype(np.float64))


def zeros_behind(path, array):
    """Append padding, as from a tape or a file system."""
    save(path, array)
    path.write_bytes(path.read_bytes() + bytes(512))


def registered_elsewhere(path, array):
    """Set a qform of the scanner and an sform of a registration with a small rotation."""
    image = nibabel.Nifti1Image(array, AFFINE)
    turned = AFFINE.copy()
    turned[:3, :3] = OBLIQUE @ turned[:3, :3]
    image.set_sform(AFFINE, code="mni")
    image.set_qform(turned, code="scanner")
    nibabel.save(image, path)


def only_a_qform(path, array):
    image = nibabel.Nifti1Image(array, AFFINE)
    image.set_sform(None, code=0)
    image.set_qform(AFFINE, code="scanner")
    nibabel.save(image, path)


def linked(path, array):
    save(path.with_name(f"kept_{path.name}"), array)
    path.unlink(missing_ok=True)
    path.symlink_to(f"kept_{path.name}")


STORED = {
    "left-handed": as_code("RAS"),
    "right-handed, all flipped": as_code("RPI"),
    "sagittal": as_code("PSR"),
    "coronal": as_code("LIP"),
    "oblique": oblique,
    "big endian": big_endian,
    "NIfTI-2": nifti_2,
    "trailing axes of 1": trailing_axes,
    "doubles": doubles,
    "zeros behind the end": zeros_behind,
    "sform of a registration": registered_elsewhere,
    "qform only": only_a_qform,
    "symbolic link": linked,
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return made_of(folder, write_cohort(folder))


def made_of(folder, config):
    """Return the maps on the axes of the plain cohort, and everything that step 2 packed."""
    for step in ("generate_constraint_maps", "generate_h5_pretraining"):
        assert run(step, "--config", config, *GIVEN).code == 0
    maps = []
    for subject in SUBJECTS:
        image = nibabel.load(folder / "work" / "constraint_maps" / f"{subject}.nii.gz")
        turn = orientations.ornt_transform(
            orientations.io_orientation(image.affine), orientations.io_orientation(AFFINE)
        )
        maps.append(orientations.apply_orientation(np.asarray(image.dataobj), turn))
    store = SliceStore(folder / "work" / "h5" / "annotated.h5")
    return np.stack(maps), store.images(), store.constraint_maps(), store.labels()


@pytest.mark.parametrize("name", STORED)
def test_the_same_tissue_gives_the_same_maps_and_slices(name, plain, tmp_path):
    config = write_cohort(tmp_path)
    for seed, subject in enumerate(SUBJECTS):
        for contrast, array in volumes(seed).items():
            STORED[name](tmp_path / "data" / subject / f"{contrast}.nii.gz", array)
    for found, expected in zip(made_of(tmp_path, config), plain, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_scans_that_are_not_compressed(plain, tmp_path):
    config = write_cohort(tmp_path)
    for seed, subject in enumerate(SUBJECTS):
        shutil.rmtree(tmp_path / "data" / subject)
        for contrast, array in volumes(seed).items():
            save(tmp_path / "data" / subject / f"{contrast}.nii", array)
    config.write_text(config.read_text().replace(".nii.gz", ".nii"))
    for found, expected in zip(made_of(tmp_path, config), plain, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_scaled_integers_and_voxels_of_other_sizes(plain, tmp_path):
    """A slope reduces quantisation noise, and voxel sizes that differ by a factor of 20 are handled like any others."""
    config, affine = write_cohort(tmp_path), AFFINE @ np.diag([0.3, 0.3, 6, 1])
    for seed, subject in enumerate(SUBJECTS):
        for contrast, array in volumes(seed).items():
            path = tmp_path / "data" / subject / f"{contrast}.nii.gz"
            if contrast == "label":
                save(path, array, affine)
                continue
            image = nibabel.Nifti1Image(array, affine)
            image.header.set_data_dtype(np.int16)  # nibabel chooses the slope
            nibabel.save(image, path)
    _, images, _, labels = made_of(tmp_path, config)
    np.testing.assert_allclose(images, plain[1], atol=2e-3)
    np.testing.assert_array_equal(labels, plain[3])


def test_a_scan_of_one_slice(tmp_path):
    config = write_cohort(tmp_path)
    for seed, subject in enumerate(SUBJECTS):
        for contrast, array in volumes(seed, (*SHAPE[:2], 1)).items():
            save(tmp_path / "data" / subject / f"{contrast}.nii.gz", array)
    maps, images, packed, labels = made_of(tmp_path, config)
    assert maps.shape == (3, *SHAPE[:2], 1) and images.shape == (3, 16, 16, 2)
    assert all(set(np.unique(one)) == {0, 1, 2} for one in maps)
    organ = [volumes(seed, (*SHAPE[:2], 1))["label"].sum() for seed in range(3)]
    np.testing.assert_array_equal(labels.sum(axis=(1, 2)), organ)
    np.testing.assert_array_equal((packed > 0).sum(axis=(1, 2)), (maps > 0).sum(axis=(1, 2, 3)))
