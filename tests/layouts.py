"""Small datasets in their released form; every voxel differs from its mirror image, to reveal swapped axes."""

import json
import locale

import nibabel
import numpy as np

SHAPE, AFFINE = (9, 8, 7), np.diag([-1.5, -1.0, 2.0, 1.0])
AFFINE[:3, 3] = 20, 30, -5


def ramp(seed=0, shape=SHAPE):
    """Return intensities that rise along all axes at different rates, `(X, Y, Z)` float32."""
    x, y, z = np.indices(shape, np.float32)
    return 100 * x + 10 * y + z + 7 * seed + 1


def corner(values, shape=SHAPE):
    """Return a label map with the values in a row from one corner, two voxels deep, without any symmetry."""
    label = np.zeros(shape, np.uint8)
    for place, value in enumerate(values):
        label[2 * place : 2 * place + 2, :3, 1:3] = value
    return label


def save(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def save_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_brats(root, subject, is_new, folder="", ending=".nii.gz", values=None):
    """Write one subject of BraTS 2018 to 2021, or of 2023 and later."""
    names = ["-t1n", "-t1c", "-t2w", "-t2f"] if is_new else ["_t1", "_t1ce", "_t2", "_flair"]
    for seed, name in enumerate(names):
        save(root / folder / subject / f"{subject}{name}{ending}", ramp(seed))
    label = corner(values or ([1, 2, 3] if is_new else [1, 2, 4]))
    save(root / folder / subject / f"{subject}{'-seg' if is_new else '_seg'}{ending}", label)


def write_msd(root, subjects=("prostate_00", "prostate_01"), tests=("prostate_03",)):
    """Write Task05_Prostate: T2 and ADC in one 4D file, with hidden files of macOS."""
    for seed, subject in enumerate([*subjects, *tests]):
        folder = "imagesTs" if subject in tests else "imagesTr"
        save(root / folder / f"{subject}.nii.gz", np.stack([ramp(seed), 5000 - ramp(seed)], -1))
        (root / folder / f"._{subject}.nii.gz").write_bytes(b"Mac OS X")
        if subject in subjects:
            save(root / "labelsTr" / f"{subject}.nii.gz", corner([1, 2]))
    content = {"modality": {"0": "T2", "1": "ADC"}, "labels": {"0": "background", "1": "PZ", "2": "TZ"}}
    content["training"] = [{"image": f"./imagesTr/{s}.nii.gz", "label": f"./labelsTr/{s}.nii.gz"} for s in subjects]
    content["test"] = [f"./imagesTs/{subject}.nii.gz" for subject in tests]
    save_json(root / "dataset.json", content)


def write_nnunet(root, **changes):
    """Write an nnU-Net raw dataset: three cases, one of them for testing."""
    for seed, (folder, case) in enumerate([("Tr", "case_001"), ("Tr", "case_002"), ("Ts", "case_003")]):
        for channel in range(2):
            save(root / f"images{folder}" / f"{case}_{channel:04d}.nii.gz", ramp(10 * channel + seed))
        if folder == "Tr":
            save(root / "labelsTr" / f"{case}.nii.gz", corner([1, 2]))
    content = {"channel_names": {"0": "T2", "1": "ADC"}, "file_ending": ".nii.gz", "numTraining": 2}
    content |= {"labels": {"background": 0, "PZ": 1, "TZ": 2}} | changes
    save_json(root / "dataset.json", content)


def write_dicom(folder, values, affine, names):
    """Write voxels `(column, row, slice)` as one DICOM file per slice, in the order of `names`."""
    import SimpleITK

    before = locale.setlocale(locale.LC_ALL)  # writing DICOM sets it to "C", so that files are no longer UTF-8
    folder.mkdir(parents=True, exist_ok=True)
    in_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(in_lps[:3, :3], axis=0)
    along = (in_lps[:3, :3] / spacing).T
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, name in enumerate(names):
        image = SimpleITK.GetImageFromArray(np.uint16(values[..., number]).T[None])
        image.SetSpacing(spacing.tolist())
        tags = {
            "0008|0060": "MR",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{abs(hash(str(folder))) % 10**9}.{number + 1}",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{abs(hash(str(folder))) % 10**9}",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{part:.6f}" for part in (in_lps @ [0, 0, number, 1])[:3]),
            "0020|0037": "\\".join(f"{part:.8f}" for part in (*along[0], *along[1])),
            "0018|0050": f"{spacing[2]:.4f}",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{name}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)


def write_masks(folder, label, names):
    """Write a label map `(column, row, slice)` as one PNG per slice; PNG pixels are `[row, column]`."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.ascontiguousarray(label[..., number].T)).save(folder / f"{name}.png")


CHAOS_GREYS = (63, 126, 189, 252)
# Coronal-like tilt of 10 degrees; slices from feet to head, as voxel to world in RAS+, mm.
CHAOS_AFFINE = np.array([[-1.5, 0, 0, 60], [0, -1.5 * 0.9848, 6 * -0.1736, 70], [0, -1.5 * 0.1736, 6 * 0.9848, -40]])
CHAOS_AFFINE = np.vstack([CHAOS_AFFINE, [0, 0, 0, 1]])
CHAOS_SHAPE = (20, 16, 7)


def write_chaos(root, subject, seed=0, greys=CHAOS_GREYS):
    """Write one examination of CHAOS: T1-DUAL from the head down, T2-SPIR on another grid."""
    folder = root / "MR" / subject
    # In-phase and out-of-phase slices are numbered together, from the head.
    inside = [f"IMG-0004-{2 * n:05d}" for n in range(CHAOS_SHAPE[2], 0, -1)]
    outside = [f"IMG-0004-{2 * n - 1:05d}" for n in range(CHAOS_SHAPE[2], 0, -1)]
    write_dicom(folder / "T1DUAL/DICOM_anon/InPhase", ramp(seed, CHAOS_SHAPE), CHAOS_AFFINE, inside)
    write_dicom(folder / "T1DUAL/DICOM_anon/OutPhase", ramp(seed + 3, CHAOS_SHAPE), CHAOS_AFFINE, outside)
    write_masks(folder / "T1DUAL/Ground", corner(greys, CHAOS_SHAPE), inside)
    coarse = CHAOS_AFFINE @ np.diag([2.0, 2.0, 1.0, 1.0])
    names = [f"IMG-0002-{n:05d}" for n in range(1, CHAOS_SHAPE[2] + 1)]
    shape = (10, 8, 7)
    write_dicom(folder / "T2SPIR/DICOM_anon", ramp(seed + 5, shape), coarse, names)
    write_masks(folder / "T2SPIR/Ground", corner([63], shape), names)


def write_renal(root, subject, echoes=3, has_cortex=True):
    """Write one subject in the renal group's form: several T2 echoes, masks of each kidney and its cortex."""
    folder = root / subject / "T2_mapping_PREP"
    # Written in reverse, so that the order in the folder is not that of the echoes.
    for echo in range(echoes, 0, -1):
        save(folder / "imagesTr" / f"e{echo}_s028.nii", ramp(echo))
    save(root / subject / "DIXON" / "imagesTr" / "water.nii.gz", ramp(50))
    label = corner([3, 1, 4, 2])
    for side, cortex, medulla in (("left", 1, 3), ("right", 2, 4)):
        save(folder / "labelsTr" / f"{subject}_t2_{side}_volume.nii.gz", np.isin(label, (cortex, medulla)).astype("u1"))
        if has_cortex:
            save(folder / "labelsTr" / f"{subject}_t2_{side}_cortex.nii.gz", (label == cortex).astype("u1"))
    return label
