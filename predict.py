"""Segment new scans with a finetuned model.

    python predict.py --model results/lgg_tcga/model --input scans/ --output predictions/
    python predict.py --model results/lgg_tcga/model --input flair.nii.gz --output label.nii.gz

Reads   a model folder (a cell of finetune_segmentation.py, or a model in results/); FILE: one scan, for models with one
        contrast; DIR: a folder with the contrasts of every subject under the names that the model was trained with
        (printed when they are not found).
Writes  one NIfTI label map per scan, on the scan's own grid, and volumes.csv with the volume of each class.
Takes   seconds a scan on a CPU.
"""

import argparse
import logging
from pathlib import Path

from utils.checks import InputError
from utils.runs import atomic_path, exit_code_of, progress, read_json

log = logging.getLogger("mrccl")
SUFFIXES = (".nii", ".nii.gz")
BATCH_SIZE = 16
KEYS = {"contrasts", "files", "filters", "labels", "mask", "percentiles", "slices", "voxel_size_known"}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder with model.json, weights.npz")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE|DIR", help="scan or folder of scans")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE|DIR", help="label map or folder of them")
    parser.add_argument("--overwrite", action="store_true", help="replace label maps that exist")
    options = parser.parse_args(arguments)
    model = read_model(options.model)
    predict(options.model, model, find_scans(options, model), options.overwrite)


def read_model(folder):
    """Read model.json and check that it describes a model."""
    if not (folder / "model.json").is_file():
        raise InputError(f"--model {folder}: no model.json there; give a cell folder of step 4 or a model in results/")
    model = read_json(folder / "model.json")
    missing = KEYS - set(model) if isinstance(model, dict) else KEYS
    if missing:
        raise InputError(f"{folder / 'model.json'}: lacks {', '.join(sorted(missing))}; run the cell again")
    return model


def find_scans(options, model):
    """List `(subject, SubjectFiles, output path)`, from one file or a folder; every scan is read and checked once."""
    from data.layouts import SubjectFiles, file_of_channel, find_subjects
    from data.volumes import problems_of_subject

    needed = {
        name: model["files"][name] for name, _ in (file_of_channel(model["files"], c) for c in model["contrasts"])
    }
    if not options.input.exists():
        raise InputError(f"--input {options.input}: no such file or folder")
    if options.input.is_file():
        if len(needed) > 1 or model["mask"]:
            names = ", ".join([*needed, *(["a mask"] if model["mask"] else [])])
            raise InputError(f"--input {options.input}: the model needs {names}; give a folder that holds all of them")
        if not options.output.name.endswith(SUFFIXES):
            raise InputError(f"--output {options.output}: for one scan give a file that ends in .nii or .nii.gz")
        subject = options.input.name.split(".")[0]
        jobs = [(subject, SubjectFiles(subject, dict.fromkeys(needed, options.input)), options.output)]
    elif options.output.name.endswith(SUFFIXES):
        raise InputError(f"--output {options.output}: for a folder of scans give a folder")
    else:
        found = find_subjects(options.input, needed, mask=model["mask"])
        jobs = [(subject, files, options.output / f"{subject}.nii.gz") for subject, files in found.items()]
    problems = [line for _, files, _ in jobs for line in problems_of_subject(files, needed)]
    if problems:
        raise InputError(problems)
    return jobs


def predict(folder, model, jobs, overwrite):
    """Segment every scan that has no label map yet; `volumes.csv` lies beside the label maps."""
    todo = [job for job in jobs if overwrite or not job[2].exists()]
    if len(todo) < len(jobs):
        log.info("%d of %d label maps exist and are kept; --overwrite replaces them", len(jobs) - len(todo), len(jobs))
    if todo:
        network = load_network(folder, model)
        for _, files, output in progress(todo, "Predicting"):
            segment(network, model, files, output)
    table = jobs[0][2].parent / "volumes.csv"
    write_volumes(table, model, [(subject, output) for subject, _, output in jobs])
    log.info("wrote %d label maps and %s", len(todo), table)


def write_volumes(table, model, outputs):
    """Write the volume of each class; rows of other subjects in the table stay."""
    import nibabel
    import numpy as np

    header, rows = "subject,label,voxels,volume_ml", {}
    if table.exists():
        for line in table.read_text().splitlines()[1:]:
            rows.setdefault(line.split(",")[0], []).append(line)
    for subject, output in outputs:
        image = nibabel.load(output)
        voxels = np.bincount(np.asarray(image.dataobj).ravel(), minlength=len(model["labels"]) + 1)
        voxel_ml = abs(float(np.linalg.det(image.affine[:3, :3]))) / 1000
        # Without a known voxel size a volume would be an invention.
        size = {n: f"{voxels[n] * voxel_ml:.3f}" if model["voxel_size_known"] else "" for n in range(len(voxels))}
        rows[subject] = [f"{subject},{name},{voxels[n]},{size[n]}" for name, n in model["labels"].items()]
    with atomic_path(table) as temporary:
        temporary.write_text("\n".join([header, *(line for lines in rows.values() for line in lines)]) + "\n")


def load_network(folder, model):
    """Build the network that `model.json` describes and load its weights."""
    from models.unet import build_unet
    from models.weights import load_weights

    shape = (*model["slices"]["image_size"], len(model["contrasts"]))
    network = build_unet(shape, filters=model["filters"], outputs=len(model["labels"]) + 1)
    load_weights(network, folder / "weights.npz")
    return network


def segment(network, model, files, output):
    """Segment one scan and write its label map."""
    from data.geometry import SliceGrid
    from data.intensity import scale_intensities
    from data.volumes import read_contrasts, read_mask, write_nifti
    from evaluation.inference import predict_subject

    volume, affine = read_contrasts(files, model["contrasts"], model["files"])
    mask = read_mask(files, volume.shape[:3], affine)
    scaled = scale_intensities(volume, mask, model["percentiles"])
    grid = SliceGrid(volume.shape[:3], affine, model["slices"]["pixel_size"], model["slices"]["image_size"])
    # Rounded as in the HDF5 files, so that a test subject gets here the label map that it got in step 4.
    slices = grid.to_slices(scaled).astype("float16")
    write_nifti(output, predict_subject(network, slices, grid, BATCH_SIZE), affine)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
