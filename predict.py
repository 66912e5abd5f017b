"""Segment new scans, or synthesise contrasts of them, with a finetuned model.

    python predict.py --model results/lgg_tcga/model --input scans/ --output predictions/
    python predict.py --model results/lgg_tcga/model --input flair.nii.gz --output label.nii.gz
    python predict.py --model runs/lgg_tcga_synthesis/synthesis/random/n10/r0 --input scans/ --output synthesised/

Reads   a model folder (a cell of finetune_segmentation.py or finetune_synthesis.py, or a model in results/); FILE: one
        scan, for models with one input contrast (and one to synthesise); DIR: a folder with the input contrasts of
        every subject under the names that the model was trained with (printed when they are not found).
Writes  on the scan's own grid. Segmentation: one NIfTI label map per scan, and volumes.csv with the volume of each
        class. Synthesis: <subject>_<contrast>.nii.gz for each contrast that the model makes, and intensities.csv,
        which says in what unit. Where the subject's folder holds that contrast as acquired, its percentiles give the
        unit of the scanner back ('acquired', cut off at low and high); elsewhere the intensities stay from 0 to 1.
Takes   seconds a scan on a CPU for slices, minutes for volumes. The network sees windows of one size however large
        the scan is, but the scan is held in memory: two contrasts from two take 40 bytes per voxel, so 0.4 GB for
        240 x 240 x 155, and more contrasts more.
"""

import argparse
import csv
import dataclasses
import logging
from pathlib import Path, PurePosixPath

from utils.checks import InputError
from utils.config import check_writable
from utils.model_description import read_model_description
from utils.runs import atomic_path, exit_code_of, progress

log = logging.getLogger("mrccl")
SUFFIXES = (".nii", ".nii.gz")
# Slices, and windows of volumes: few, to save memory, but two, because of one alone TensorFlow's sums differ by 1e-4.
BATCH_SIZE = {2: 16, 3: 2}
INTENSITIES = "intensities.csv"  # the table beside synthesised contrasts
ACQUIRED, SCALED = "acquired", "scaled 0 to 1"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder with model.json, weights.npz")
    parser.add_argument("--input", required=True, type=Path, metavar="FILE|DIR", help="scan or folder of scans")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE|DIR", help="result or folder of results")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    options = parser.parse_args(arguments)
    is_scan = options.output.name.endswith(SUFFIXES)
    if is_scan or not options.output.is_file():  # of a file, `find_scans` says what it should be
        check_writable(options.output.parent if is_scan else options.output, "--output", "give another place")
    model = read_model(options.model)
    predict(options.model, model, find_scans(options, model), options.overwrite)


def read_model(folder):
    """Read model.json and check that it describes a model."""
    if not (folder / "model.json").is_file():
        raise InputError(f"--model {folder}: no model.json there; give a cell folder of step 4 or a model in results/")
    return read_model_description(folder / "model.json")


def find_scans(options, model):
    """List `(subject, SubjectFiles, {what: output path})`; every scan is read and checked once.

    What is made of a scan is a `label`, or the contrasts in `targets`.
    """
    from data.volumes import problems_of_subject

    if not options.input.exists():
        raise InputError(f"--input {options.input}: no such file or folder")
    jobs = scan_of_file(options, model) if options.input.is_file() else scans_of_folder(options, model)
    problems = [line for _, files, _ in jobs for line in problems_of_subject(files, model["files"], files.contrasts)]
    if problems:
        raise InputError(problems)
    return jobs


def scan_of_file(options, model):
    """The one scan of a model with one input contrast: FILE to FILE."""
    from data.layouts import SubjectFiles

    scan, output, needed = options.input, options.output, patterns_of(model, model["contrasts"])
    made = model.get("targets", ["label"])
    if len(needed) > 1 or model["mask"]:
        names = ", ".join([*needed, *(["a mask"] if model["mask"] else [])])
        raise InputError(f"--input {scan}: the model needs {names}; give a folder that holds all of them")
    if len(made) > 1:
        raise InputError(f"--input {scan}: the model makes {', '.join(made)}; give a folder that holds the scan")
    if not output.name.endswith(SUFFIXES):
        raise InputError(f"--output {output}: for one scan give a file that ends in .nii or .nii.gz")
    if output.resolve() == scan.resolve():
        raise InputError(f"--output {output}: is the scan itself; give another file")
    subject = scan.name.split(".")[0]
    return [(subject, SubjectFiles(subject, dict.fromkeys(needed, scan)), {made[0]: output})]


def scans_of_folder(options, model):
    """All subjects of a folder, with the acquired contrasts among those that are to be made."""
    from data.layouts import find_subjects

    root, output, targets = options.input, options.output, model.get("targets", [])
    if output.name.endswith(SUFFIXES) or output.is_file():
        raise InputError(f"--output {output}: for a folder of scans give a folder")
    subjects = find_subjects(root, patterns_of(model, model["contrasts"]), mask=model["mask"])
    subjects = add_acquired(subjects, root, model)
    names = {target: f"_{target}.nii.gz" for target in targets} or {"label": ".nii.gz"}
    jobs = [
        (subject, files, {name: output / f"{subject}{ending}" for name, ending in names.items()})
        for subject, files in subjects.items()
    ]
    refuse_places_of_contrasts(root, model, [path for *_, paths in jobs for path in paths.values()])
    return jobs


def patterns_of(model, channels):
    """Return the contrasts whose files hold some channels, and their patterns."""
    from data.layouts import file_of_channel

    names = [file_of_channel(model["files"], channel)[0] for channel in channels]
    return {name: model["files"][name] for name in names}


def add_acquired(subjects, root, model):
    """Add the files of contrasts that are to be synthesised, where a subject was scanned with them as well."""
    from data.layouts import find_subjects

    needed = patterns_of(model, model["contrasts"])
    for name, pattern in patterns_of(model, model.get("targets", [])).items():
        scanned = find_subjects(root, needed | {name: pattern}, left_out=[])
        for subject in subjects.keys() & scanned.keys():
            contrasts = subjects[subject].contrasts | {name: scanned[subject].contrasts[name]}
            subjects[subject] = dataclasses.replace(subjects[subject], contrasts=contrasts)
    return subjects


def refuse_places_of_contrasts(root, model, outputs):
    """Refuse to write where contrasts are read: a synthesised one would replace the acquired one, or pass for it."""
    from data.layouts import file_pattern

    root = root.resolve()
    patterns = [file_pattern(entry).replace("{subject}", "*") for entry in model["files"].values()]
    for path in outputs:
        place = path.resolve()
        inside = PurePosixPath("/", place.relative_to(root)) if place.is_relative_to(root) else None
        if inside and any(inside.match(f"/{pattern}") for pattern in patterns):
            raise InputError(f"--output {path.parent}: scans are read under names such as {path}; give another folder")


def predict(folder, model, jobs, overwrite):
    """Make what does not exist yet; the table of volumes or of intensities lies beside it."""
    is_synthesis = "targets" in model
    what, make = ("synthesised contrasts", synthesise) if is_synthesis else ("label maps", segment)
    outputs = [path for *_, paths in jobs for path in paths.values()]
    todo = [
        (files, {name: path for name, path in paths.items() if overwrite or not path.exists()})
        for _, files, paths in jobs
    ]
    todo = [(files, paths) for files, paths in todo if paths]
    written = sum(len(paths) for _, paths in todo)
    if written < len(outputs):
        kept = len(outputs) - written
        log.info("%d of %d %s exist and are kept; --overwrite replaces them", kept, len(outputs), what)
    if todo:
        network = load_network(folder, model)
        for files, paths in progress(todo, "Predicting"):
            make(network, model, files, paths)
    if is_synthesis:
        table = outputs[0].parent / INTENSITIES
        units = [row["unit"] for row in read_rows(table).values()]
        found = ", ".join(f"{units.count(unit)} {unit}" for unit in (ACQUIRED, SCALED))
        log.info("wrote %d %s and %s (intensities: %s)", written, what, table, found)
    else:
        table = outputs[0].parent / "volumes.csv"
        write_volumes(table, model, [(subject, *paths.values()) for subject, _, paths in jobs])
        log.info("wrote %d %s and %s", written, what, table)


def load_network(folder, model):
    """Build the network that `model.json` describes and load its weights."""
    from models.unet import build_unet
    from models.weights import load_weights

    if "targets" in model:
        size = model["crop_size"]
        head = {"rank": len(size), "head": "synthesis", "outputs": len(model["targets"])}
    else:
        size, head = model["slices"]["image_size"], {"outputs": len(model["labels"]) + 1}
    network = build_unet((*size, len(model["contrasts"])), filters=model["filters"], **head)
    load_weights(network, folder / "weights.npz")
    return network


def read_slices(model, files):
    """Return the input contrasts of a scan as slices, `(S, H, W, C)` float16 in [0, 1]; their grid; and the mask."""
    from data.geometry import SliceGrid
    from data.intensity import scale_intensities
    from data.volumes import read_contrasts, read_mask

    volume, affine = read_contrasts(files, model["contrasts"], model["files"])
    mask = read_mask(files, volume.shape[:3], affine)
    scaled = scale_intensities(volume, mask, model["percentiles"], affine)
    grid = SliceGrid(volume.shape[:3], affine, model["slices"]["pixel_size"], model["slices"]["image_size"])
    # Rounded as in the HDF5 files, so that a test subject gets here what it got in step 4.
    return grid.to_slices(scaled).astype("float16"), grid, mask


def segment(network, model, files, paths):
    """Segment one scan and write its label map."""
    from data.volumes import write_nifti
    from evaluation.inference import predict_subject

    slices, grid, _ = read_slices(model, files)
    write_nifti(paths["label"], predict_subject(network, slices, grid, BATCH_SIZE[2]), grid.affine)


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


def synthesise(network, model, files, paths):
    """Synthesise contrasts of one scan and write those that `paths` names, and how they are scaled."""
    from data.volumes import write_nifti
    from evaluation.synthesis import synthesise_subject

    slices, grid, mask = read_slices(model, files)
    size = model["crop_size"]
    windows = {"overlap": model["overlap"], "batch_size": BATCH_SIZE[len(size)]}
    made = synthesise_subject(network, slices, grid, size, **windows)
    ranges = {target: acquired_range(model, files, target, mask) for target in paths}
    # Before the contrasts, so that none is ever without its row.
    write_intensities(next(iter(paths.values())).parent / INTENSITIES, files.subject, ranges)
    for target, path in paths.items():
        low, high = ranges[target] or (0.0, 1.0)
        values = low + made[..., model["targets"].index(target)] * (high - low)
        write_nifti(path, values, grid.affine, span=(low, high))


def acquired_range(model, files, target, mask):
    """Return the intensities of the acquired contrast that are 0 and 1 for the network, or None if there is none."""
    from data.intensity import intensity_ranges
    from data.volumes import read_contrasts

    if not patterns_of(model, [target]).keys() <= files.contrasts.keys():
        return None
    volume, affine = read_contrasts(files, [target], model["files"])
    return intensity_ranges(volume, mask, model["percentiles"], affine)[0].tolist()


def write_intensities(table, subject, ranges):
    """Write the unit, lowest and highest intensity of contrasts of one subject; other rows of the table stay."""
    rows = read_rows(table)
    for target, found in ranges.items():
        low, high = found or (0, 1)
        unit = ACQUIRED if found else SCALED
        rows[subject, target] = {"subject": subject, "contrast": target, "unit": unit, "low": low, "high": high}
    with atomic_path(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["subject", "contrast", "unit", "low", "high"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())


def read_rows(table):
    """Read intensities.csv: `{(subject, contrast): row}`, empty when there is none."""
    if not table.exists():
        return {}
    with table.open(newline="") as file:
        return {(row["subject"], row["contrast"]): row for row in csv.DictReader(file)}


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
