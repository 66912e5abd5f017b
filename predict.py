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


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder with model.json, weights.npz")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE|DIR", help="scan or folder of scans")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE|DIR", help="label map or folder of them")
    parser.add_argument("--overwrite", action="store_true", help="replace label maps that exist")
    options = parser.parse_args(arguments)
    model = read_json(options.model / "model.json")
    jobs = find_scans(options, model)
    predict(options.model, model, jobs, options.overwrite)


def find_scans(options, model):
    """List `(subject, SubjectFiles, output path)`, from one file or a folder."""
    from data.layouts import SubjectFiles, find_subjects

    if not options.input.exists():
        raise InputError(f"--input {options.input}: no such file or folder")
    if options.input.is_file():
        if len(model["contrasts"]) > 1:
            names = ", ".join(model["contrasts"])
            raise InputError(f"--input {options.input}: the model needs {names}; give a folder that holds all of them")
        if not options.output.name.endswith(SUFFIXES):
            raise InputError(f"--output {options.output}: for one scan give a file that ends in .nii or .nii.gz")
        subject = options.input.name.split(".")[0]
        files = SubjectFiles(subject, {model["contrasts"][0]: options.input})
        return [(subject, files, options.output)]
    if options.output.name.endswith(SUFFIXES):
        raise InputError(f"--output {options.output}: for a folder of scans give a folder")
    needed = {name: pattern for name, pattern in model["files"].items() if _is_used(name, model["contrasts"])}
    found = find_subjects(options.input, needed, mask=model["mask"])
    return [(subject, files, options.output / f"{subject}.nii.gz") for subject, files in found.items()]


def _is_used(name, channels):
    return any(channel == name or channel.startswith(f"{name}_") for channel in channels)


def predict(folder, model, jobs, overwrite):
    """Segment every scan; `volumes.csv` lies beside the label maps."""
    existing = [output for _, _, output in jobs if output.exists()]
    if existing and not overwrite:
        raise InputError([f"{output}: exists; give --overwrite or another --output" for output in existing])
    network = load_network(folder, model)
    rows = []
    for subject, files, output in progress(jobs, "Predicting"):
        rows += segment(network, model, subject, files, output)
    table = jobs[0][2].parent / "volumes.csv"
    with atomic_path(table) as temporary:
        temporary.write_text("\n".join(["subject,label,voxels,volume_ml", *rows]) + "\n")
    log.info("wrote %d label maps and %s", len(jobs), table)


def load_network(folder, model):
    """Build the network that `model.json` describes and load its weights."""
    from models.unet import build_unet
    from models.weights import load_weights

    shape = (*model["slices"]["image_size"], len(model["contrasts"]))
    network = build_unet(shape, filters=model["filters"], outputs=len(model["labels"]) + 1)
    load_weights(network, folder / "weights.npz")
    return network


def segment(network, model, subject, files, output):
    """Segment one scan, write its label map and return its rows of `volumes.csv`."""
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
    prediction = predict_subject(network, slices, grid, BATCH_SIZE)
    write_nifti(output, prediction, affine)
    voxel_ml = abs(float(grid.spacing.prod())) / 1000
    rows = []
    for label, index in model["labels"].items():
        voxels = int((prediction == index).sum())
        # Without a known voxel size a volume would be an invention.
        volume_ml = f"{voxels * voxel_ml:.3f}" if model["voxel_size_known"] else ""
        rows.append(f"{subject},{label},{voxels},{volume_ml}")
    return rows


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
