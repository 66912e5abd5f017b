"""Segment new scans, or synthesise their missing contrasts, with one or several finetuned models.

    python predict.py --model results/lgg_tcga/model --input scans/ --output predictions/
    python predict.py --model results/lgg_tcga/model --input flair.nii.gz --output label.nii.gz
    python predict.py --model runs/lgg_tcga_synthesis/synthesis/random/n10/r0 --input scans/ --output synthesised/

Reads   model folders (cells of finetune_segmentation.py or finetune_synthesis.py, folders of tools.export_model, or
        models in results/); several of one kind form an ensemble. FILE: one scan, for models with one input contrast
        (and one to synthesise); tables name it after its result. DIR: a folder with the input contrasts of every
        subject under the names used in training (printed if they are not found), or, for models with one input
        contrast, a plain folder of NIfTI files, each a scan named after its file.
Writes  on the scan's own grid. Segmentation: one NIfTI label map per scan, with --probabilities also the probability of
        each class, with --seg-nrrd a segmentation for 3D Slicer; volumes.csv with the volume of each class, and the
        names and colours of the classes for viewers (BIDS dseg.tsv, labels.itksnap.txt, labels.ctbl for 3D Slicer;
        beside a single FILE their names begin with its name). Synthesis: <subject>_<contrast>.nii.gz for each
        contrast that the model synthesises, and intensities.csv, which gives their unit. If the subject's folder holds
        that contrast as acquired, its percentiles restore the scanner's intensities ('acquired', clipped at low and
        high); otherwise intensities range from 0 to 1. made_by.csv records model, scan and options of each result;
        existing results of another model, scan or other options are refused unless --overwrite is given.
Takes   seconds per scan on a CPU for slices, minutes for volumes. The network sees windows of one size, but the whole
        scan is held in memory: synthesising two contrasts from two takes 40 bytes per voxel, 0.4 GB for
        240 x 240 x 155; more contrasts take more. A GPU is used if there is one; CUDA_VISIBLE_DEVICES= hides it.
"""

import dataclasses
import functools
import logging
import math
import re
from pathlib import Path, PurePosixPath

from data.layouts.files import SUFFIXES, stem_of
from utils.checks import InputError, accept, counted
from utils.command_line import check_writable, parser_of
from utils.config.data import file_pattern
from utils.disk import results_go_to
from utils.model_description import check_agreement, read_model_description
from utils.parallel import attempt
from utils.runs import exit_code_of, progress
from utils.words_of_predict import for_prediction, in_words_of_predict
from utils.work_dir import MODEL

log = logging.getLogger("mrccl")
FLIPS = {"anterior_posterior": 1, "left_right": 2}  # axes of a batch of slices (`data.geometry.SLICE_AXES`)
# left_kidney, LeftKidney, kidney-l, kidneyL; but not cleft.
SIDED = re.compile(r"(?i:^(left|right)|(^|[_-])(left|right|l|r)([_-]|$))|[a-z0-9](Left|Right|L|R)(?![a-z])")


@results_go_to("--output")
def main(arguments=None):
    options = read_options(arguments)
    is_scan = options.output.name.endswith(SUFFIXES)
    if is_scan or not options.output.is_file():  # `find_scans` reports a file where a folder is needed
        check_writable(options.output.parent if is_scan else options.output, "--output", "give another place")
    models = {folder: read_model(folder) for folder in options.model}
    check_agreement(models)
    model = models[options.model[0]]
    check_options(options, model)
    failures = []
    with in_words_of_predict():
        jobs = check_fields(find_scans(options, model, failures), list(models.values()), options, failures)
        predict(models, jobs, options, failures)
    for line in failures:
        log.error("failed: %s", for_prediction(line))
    return 1 if failures else 0


def check_fields(jobs, models, options, failures):
    """Refuse scans that extend too far beyond the slices, or whose voxel size differs from that of training."""
    from evaluation.prediction.field_checks import check_field

    return sound_ones(jobs, lambda reader: check_field(reader, models), options, failures)


def sound_ones(jobs, problems_of, options, failures):
    """Return the jobs without problems; InputError if any has one, but under --keep-going a line in `failures`."""
    found = [problems_of(reader) for _, reader, _ in jobs]
    sound = [job for job, problems in zip(jobs, found, strict=True) if not problems]
    problems = [line for lines in found for line in lines]
    if problems and sound and not options.keep_going:
        log.info("--keep-going predicts the other %s", counted(len(sound), "scan"))
    if not sound or (problems and not options.keep_going):
        raise InputError(failures + problems)
    failures += problems
    return sound


def read_options(arguments):
    parser = parser_of(__doc__)
    parser.add_argument(
        "--model", required=True, nargs="+", type=Path, metavar="DIR", help="model folder; several are averaged"
    )
    parser.add_argument("--input", required=True, type=Path, metavar="FILE|DIR", help="scan or folder of scans")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE|DIR", help="result or folder of results")
    text = "also predict images mirrored along these axes of the patient, and average"
    parser.add_argument("--flip", nargs="+", default=(), choices=list(FLIPS), help=text)
    parser.add_argument("--probabilities", action="store_true", help="also write the probability of each class, 4D")
    text = "also write each label map as .seg.nrrd: a segmentation for 3D Slicer with names and colours"
    parser.add_argument("--seg-nrrd", action="store_true", help=text)
    text = "keep only the largest connected component of these classes (default: of all)"
    parser.add_argument("--largest-component", nargs="*", metavar="LABEL", help=text)
    text = "remove connected components of a class smaller than this, in mL"
    parser.add_argument("--min-component-ml", type=float, metavar="ML", help=text)
    text = "skip scans that cannot be used and list them at the end (exit code 1)"
    parser.add_argument("--keep-going", action="store_true", help=text)
    parser.add_argument("--overwrite", action="store_true", help="replace existing results")
    return parser.parse_args(arguments)


def read_model(folder):
    """Read model.json and check that it describes a model."""
    if not (folder / MODEL).is_file():
        raise InputError(f"--model {folder}: no model.json there; give a cell folder of step 4 or a model in results/")
    return read_model_description(folder / MODEL)


def check_options(options, model):
    """Refuse options that do not apply to the model, all of them at once."""
    lines, labels = [], model.labels
    for option in ("probabilities", "seg_nrrd", "largest_component", "min_component_ml"):
        if model.targets and getattr(options, option) not in (None, False):
            lines.append(f"--{option.replace('_', '-')}: is for segmentations; this model synthesises contrasts")
    for name in set(options.largest_component or ()) - labels.keys() if labels else ():
        lines.append(f"--largest-component {name}: not a class of the model ({', '.join(labels)})")
    if options.min_component_ml is not None and labels:
        if not 0 < options.min_component_ml < math.inf:
            lines.append(f"--min-component-ml {options.min_component_ml:g}: give a volume above 0")
        elif not model.voxel_size_known:
            lines.append("--min-component-ml: the model's scans had no known voxel size, so there are no mL")
    if "left_right" in options.flip and (sided := [name for name in labels if SIDED.search(name)]):
        cure = "in a mirror image left is right; leave left_right out"
        lines.append(f"--flip left_right: the model tells left from right ({', '.join(sided)}); {cure}")
    if lines:
        raise InputError(lines)
    if options.seg_nrrd:
        from data.scans.seg_nrrd import check_slicerio

        check_slicerio("--seg-nrrd")


def find_scans(options, model, failures):
    """List `(subject, SubjectReader, {what: output path})`; every scan is read and checked once.

    Under --keep-going, scans with problems are skipped, and `failures` gets a line for each problem.
    """
    from data.scans.subject import SubjectReader

    if not options.input.exists():
        raise InputError(f"--input {options.input}: no such file or folder")
    is_file, left_out = options.input.is_file(), failures if options.keep_going else None
    options.layout, options.judge = "pattern" if is_file else model.layout, None  # layout of the output
    jobs = scan_of_file(options, model) if is_file else scans_of_folder(options, model, left_out)
    wanted = model.wanted()
    jobs = [(name, SubjectReader(files, wanted, files.contrasts), paths) for name, files, paths in jobs]
    return sound_ones(jobs, lambda reader: reader.problems(judge=options.judge), options, failures)


def scan_of_file(options, model):
    """Return the job for a single scan, from FILE to FILE; for models with one input contrast."""
    from evaluation.prediction.new_scans import patterns_of
    from evaluation.prediction.plain_folder import files_of_scan

    scan, output, needed = options.input, options.output, patterns_of(model, model.contrasts)
    if len(needed) > 1 or model.mask:
        names = ", ".join([*needed, *(["a mask"] if model.mask else [])])
        raise InputError(f"--input {scan}: the model needs {names}; give a folder that holds all of them")
    if len(model.targets) > 1:
        raise InputError(
            f"--input {scan}: the model makes {', '.join(model.targets)}; give a folder that holds the scan"
        )
    if not output.name.endswith(SUFFIXES):
        raise InputError(f"--output {output}: for one scan give a file that ends in .nii or .nii.gz")
    if output.resolve() == scan.resolve():
        raise InputError(f"--output {output}: is the scan itself; give another file")
    subject = stem_of(output)  # results have distinct names; scans are often all called t1.nii.gz
    paths = outputs_of(subject, output.parent, options, model) | {(model.targets or ["label"])[0]: output}
    files = files_of_scan(stem_of(scan), scan, *needed, model)
    return [(subject, files, paths)]


def scans_of_folder(options, model, left_out):
    """Return the jobs for all subjects of a folder, with the acquired versions of contrasts to be synthesised.

    Given a list `left_out`, subjects with a problem are described there instead of raising an error.
    """
    from data.layouts.subjects import find_subjects, needed_of
    from evaluation.prediction.plain_folder import no_scan

    root, output = options.input, options.output
    if output.name.endswith(SUFFIXES) or output.is_file():
        raise InputError(f"--output {output}: for a folder of scans give a folder")
    new = {"mask": model.mask, "test_images": model.layout in ("msd", "nnunet")}
    try:
        subjects = find_subjects(model.wanted(root, needed_of(model), **new), left_out)
    except InputError as error:
        is_empty = error.lines[0].startswith("data.root: no ")  # file of this layout, dataset.json or folder
        if subjects := scans_of_plain_folder(options, model, left_out) if is_empty else {}:
            options.layout, options.judge = "pattern", no_scan
            return [(name, files, outputs_of(name, output, options, model)) for name, files in subjects.items()]
        raise
    subjects = add_acquired(subjects, root, model)
    jobs = [(name, files, outputs_of(name, output, options, model)) for name, files in subjects.items()]
    refuse_places_of_contrasts(root, model, [path for *_, paths in jobs for path in paths.values()])
    return jobs


def scans_of_plain_folder(options, model, left_out):
    """Return all NIfTI files of a folder as scans, for models that need one file per subject; {} for others."""
    from data.layouts.subjects import needed_of
    from evaluation.prediction.plain_folder import scans_in

    root, needed = options.input, needed_of(model)
    if len(needed) > 1 or model.mask:
        return {}
    subjects = scans_in(root, *needed, model, left_out)
    if subjects and options.output.resolve() == root.resolve():
        raise InputError(f"--output {options.output}: is the folder of the scans; give another one")
    if subjects:
        log.info("%s: a plain folder; each of %s is a scan of its own", root, counted(len(subjects), "NIfTI file"))
    return subjects


def outputs_of(subject, folder, options, model):
    """Return the outputs for a subject and their paths, `{what: path}`, in the layout of the scans.

    The outputs are a `label`, and `segments` and `probabilities` if requested; or the contrasts in `targets`.
    """
    from data.derivatives import output_path
    from data.layouts.subjects import file_of_channel

    asked = {"segments": options.seg_nrrd, "probabilities": options.probabilities}
    made = {"label": None} | {what: None for what in asked if asked[what]}
    if model.targets:
        entries = {target: model.files[file_of_channel(model.files, target)[0]] for target in model.targets}
        made = {target: file_pattern(entry) for target, entry in entries.items()}
    paths = {what: output_path(options.layout, folder, subject, what, entry) for what, entry in made.items()}
    if len(set(paths.values())) < len(paths):
        raise InputError(f"--model: {', '.join(paths)} would all be written to {next(iter(paths.values()))}")
    return paths


def add_acquired(subjects, root, model):
    """Add the files of contrasts to be synthesised, for subjects that were also scanned with them."""
    from data.layouts.subjects import find_subjects, needed_of
    from evaluation.prediction.new_scans import patterns_of

    for name, pattern in patterns_of(model, model.targets).items():
        scanned = find_subjects(model.wanted(root, needed_of(model) | {name: pattern}), [])
        for subject in subjects.keys() & scanned.keys():
            contrasts = subjects[subject].contrasts | {name: scanned[subject].contrasts[name]}
            subjects[subject] = dataclasses.replace(subjects[subject], contrasts=contrasts)
    return subjects


def refuse_places_of_contrasts(root, model, outputs):
    """Refuse to write where contrasts are read: a synthesised one could replace an acquired one, or pass for it."""
    root, is_pattern = root.resolve(), model.layout == "pattern"
    patterns = [file_pattern(entry).replace("{subject}", "*") for entry in model.files.values()]
    for path in outputs:
        place = path.resolve()
        if not place.is_relative_to(root):
            continue
        inside = PurePosixPath("/", place.relative_to(root))
        if is_pattern and any(inside.match(f"/{pattern}") for pattern in patterns):
            raise InputError(f"--output {path.parent}: scans are read under names such as {path}; give another folder")
        if not is_pattern and inside.parts[1] != "derivatives":
            cure = f"give a folder elsewhere, or in '{root / 'derivatives'}'"
            raise InputError(f"--output {path.parent}: scans are looked for below '{root}'; {cure}")


def predict(models, jobs, options, failures):
    """Make all missing outputs; under --keep-going, `failures` gets a line for each scan that fails."""
    from evaluation.prediction.ensembles import Ensemble
    from evaluation.prediction.made_by import note
    from evaluation.prediction.new_scans import segment, synthesise
    from evaluation.prediction.tables import INTENSITIES
    from models.portable import load_network

    model = next(iter(models.values()))
    folder = options.output if options.input.is_dir() else options.output.parent
    todo, made_by = what_to_make(models, jobs, folder, options)
    written = sum(len(paths) for _, paths in todo)
    what = "synthesised contrast" if model.targets else "label map"
    words = [f"{what}s", *["segmentations"] * options.seg_nrrd, *["probabilities"] * options.probabilities]
    several = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if kept := sum(len(paths) for *_, paths in jobs) - written:
        log.info("%d of %d %s exist and are kept; --overwrite replaces them", kept, kept + written, several)
    if todo:
        if model.targets:
            make = functools.partial(synthesise, table=folder / INTENSITIES)
        else:
            largest, smallest = options.largest_component, options.min_component_ml
            largest = list(model.labels) if largest == [] else largest or ()
            make = functools.partial(segment, largest_of=largest, min_component_ml=smallest or 0)
        networks = [load_network(place, model) for place, model in models.items()]
        network = Ensemble(networks, [FLIPS[name] for name in options.flip])
        for files, paths in progress(todo, "Predicting"):
            for path in paths.values():  # an old result must not pass for the new one
                path.unlink(missing_ok=True)
            note(folder, {(files.subject, what): made_by[files.subject, what] for what in paths})
            deed = functools.partial(make, network, model, files, paths)
            _, lines = attempt(deed, files.subject, options.keep_going)
            accept(lines, options.keep_going, failures)
            if lines:
                jobs, written = [job for job in jobs if job[0] != files.subject], written - len(paths)
    made = counted(written, what, several)
    log.info("wrote %s and %s", made, write_tables(folder, model, jobs, options))


def what_to_make(models, jobs, folder, options):
    """Return `[(files, {what: path})]` of missing outputs, and a row of made_by.csv for every result.

    Existing results of another model, another scan or other options are refused.
    """
    from data.layouts.subjects import needed_of
    from evaluation.prediction.made_by import hash_of_models, hash_of_scan, refuse_others, rows_of

    digest, words, needed = hash_of_models(models), words_of(options), needed_of(next(iter(models.values())))
    todo, made_by, kept = [], {}, {}
    for subject, reader, paths in jobs:
        files, scan = dataclasses.replace(reader.files, subject=subject), hash_of_scan(reader, needed)
        rows = rows_of(subject, scan, paths, folder, digest, {what: words.get(what, words[None]) for what in paths})
        missing = {what: path for what, path in paths.items() if options.overwrite or not path.exists()}
        made_by |= rows
        kept |= {(subject, what): rows[subject, what] for what in paths if what not in missing}
        todo += [(files, missing)] if missing else []
    refuse_others(folder, kept)
    return todo, made_by


def words_of(options):
    """Return the options that affect a label map, and under None those that affect any result."""
    shared = [f"--flip {' '.join(sorted(set(options.flip)))}"] if options.flip else []
    own = list(shared)
    if options.largest_component is not None:
        own.append(" ".join(["--largest-component", *sorted(set(options.largest_component))]))
    if options.min_component_ml:
        own.append(f"--min-component-ml {options.min_component_ml:g}")
    return {None: " ".join(shared), "label": " ".join(own), "segments": " ".join(own)}


def write_tables(folder, model, jobs, options):
    """Write the tables beside the results; returns the name of the table for the log."""
    from data.derivatives import describe_outputs, label_table_prefix
    from data.label_tables import write_label_tables
    from evaluation.prediction.tables import INTENSITIES, VOLUMES, summary_of_units, write_volumes

    if options.input.is_dir():
        describe_outputs(options.layout, folder, model.name or "scans", model.labels, model.contrasts)
    if model.targets:
        return f"{folder / INTENSITIES} (intensities: {summary_of_units(folder / INTENSITIES)})"
    labels = {subject: paths["label"] for subject, _, paths in jobs}
    single = None if options.input.is_dir() else stem_of(options.output)
    write_volumes(folder / VOLUMES, labels, model.labels, model.voxel_size_known)
    write_label_tables(folder, model.legend(), label_table_prefix(options.layout, single))
    return folder / VOLUMES


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
