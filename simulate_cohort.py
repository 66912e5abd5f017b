"""Optional, before step 1: simulate a multi-contrast cohort with reference labels and true tissue parameters.

    python simulate_cohort.py --out runs/renal_demo/scans --subjects 18 --anatomy renal --seed 1 --jobs 2

Reads   nothing.
Writes  one folder per subject (sub-001, ...) with one NIfTI per contrast, label.nii.gz, true_t1.nii.gz and
        true_t2.nii.gz (ms), true_pd.nii.gz (percent), true_tissue.nii.gz; beside them, splits.json,
        participants.tsv, names and colours of the labels for viewers (dseg.tsv, labels.itksnap.txt, labels.ctbl),
        dataset_description.json and README.
Takes   1 to 3 seconds and up to 0.5 GB per subject and job. Finished subjects are skipped: rerun the command to
        resume an interrupted cohort; a larger --subjects extends a finished one (and changes its sets).
Next    python generate_constraint_maps.py --config FILE
"""

import functools
import logging
import os
import tempfile
from pathlib import Path

from utils.checks import InputError, counted
from utils.command_line import check_writable, parser_of
from utils.disk import results_go_to
from utils.parallel import in_order
from utils.runs import alone_in, atomic_path, exit_code_of, progress, read_json, write_json

log = logging.getLogger("mrccl")

TEST_SHARE, VALIDATION_SHARE = 0.25, 0.12

README = """SIMULATED scans: no person was scanned, and results on them must be called simulated.

{subjects} subjects, anatomy "{anatomy}", seed {seed}. Anatomy is drawn from random parameters; tissue parameters are
published 3 T values with spread between and within subjects (data/simulation/tissues.py); images follow from signal
equations (data/simulation/sequences.py) with partial volume, receive field and Rician noise
(data/simulation/subjects.py).

Contrasts: {contrasts}; arbitrary units.
label.nii.gz: {labels}; 0 is everything else.
true_t1.nii.gz, true_t2.nii.gz: ms; true_pd.nii.gz: percent; means over the protons of a voxel, before contrast agent.
true_tissue.nii.gz: the tissue that fills most of a voxel; {tissues}.
"""


@results_go_to("--out")
def main(arguments=None):
    options = parse(arguments)
    if options.subjects < 3:
        raise InputError(f"--subjects {options.subjects}: expected at least 3, one each to train, validate and test")
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected at least 1")
    check_writable(options.out, "--out", "give another folder")
    simulate_cohort(options.out, options.subjects, options.anatomy, options.seed, options.shape, options.jobs)


def parse(arguments):
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the cohort")
    parser.add_argument("--subjects", type=int, default=18, metavar="N", help="number of subjects (18)")
    parser.add_argument("--anatomy", choices=("renal", "brain_tumour"), default="renal", help="anatomy (renal)")
    parser.add_argument("--seed", type=int, default=1, metavar="K", help="seed of the cohort (1)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="voxels from left to right, back to front, feet to head (renal 96 80 16, brain_tumour 80 96 26) in the "
        "same field of view",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    return parser.parse_args(arguments)


def simulate_cohort(folder, number, anatomy, seed, shape, jobs):
    # Deferred so that --help and errors in the command line are answered at once.
    from data.simulation.subjects import ANATOMIES, check_shape

    shape = check_shape(shape or ANATOMIES[anatomy].shape)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder, "--out"):
        write_cohort(folder, number, anatomy, seed, shape, jobs)


def write_cohort(folder, number, anatomy, seed, shape, jobs):
    """Simulate the missing subjects and describe the cohort."""
    from data.label_tables import write_label_tables
    from data.simulation.subjects import ANATOMIES
    from data.simulation.tissues import TISSUE_INDEX
    from utils.label_colours import legend_of

    choice = ANATOMIES[anatomy]
    describe(folder, anatomy, seed, shape)
    subjects = [f"sub-{index:03d}" for index in range(1, number + 1)]
    missing = [subject for subject in subjects if not (folder / subject).exists()]
    if len(missing) < number:
        log.info("%d of %d subjects exist already", number - len(missing), number)
    work = functools.partial(write_subject, folder, anatomy, seed, shape)
    for _ in progress(in_order(work, missing, jobs), "Simulated subjects", total=len(missing)):
        pass
    sets = split(subjects)
    write_json(folder / "splits.json", sets)
    write_label_tables(folder, legend_of(choice.labels))
    write_participants(folder / "participants.tsv", folder, sets, choice.labels)
    write_text(
        folder / "README",
        README.format(
            subjects=number,
            anatomy=anatomy,
            seed=seed,
            contrasts=", ".join(choice.protocol),
            labels=", ".join(f"{value} {name}" for name, value in choice.labels.items()),
            tissues=", ".join(f"{index} {name}" for name, index in TISSUE_INDEX.items()),
        ),
    )
    listed = ", ".join(f"{len(sets[s])} {s}" for s in sets)
    log.info("%s: %s (%s)", folder, counted(number, "simulated subject"), listed)
    log.info("next: python generate_constraint_maps.py --config FILE, with data.root %s in the file", folder)


def describe(folder, anatomy, seed, shape):
    """Write the parameters of the cohort; refuse to mix it with a different one."""
    path = folder / "dataset_description.json"
    made_of = {"anatomy": anatomy, "seed": seed, "shape": list(shape)}
    if path.exists():
        found = {key: read_json(path).get(key) for key in made_of}
        differing = [f"{key} {found[key]}, not {made_of[key]}" for key in made_of if found[key] != made_of[key]]
        if differing:
            raise InputError(f"{folder}: holds a cohort with {'; '.join(differing)}; choose another --out")
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files; --out needs a new or empty folder, or a simulated cohort")
    name = f"SIMULATED {anatomy} cohort, not scans of persons"
    write_json(path, {"Name": name, "DatasetType": "derivative", "simulated": True, **made_of})


def write_subject(folder, anatomy, seed, shape, subject):
    """Simulate one subject and move its folder into place once it is complete."""
    from data.scans.volumes import write_nifti
    from data.simulation.subjects import simulate_subject

    simulated = simulate_subject(anatomy, subject, seed, shape)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as scratch:
        unfinished = Path(scratch) / subject
        unfinished.mkdir()
        images = {**simulated.contrasts, "label": simulated.label, **simulated.truth}
        for name, image in images.items():
            write_nifti(unfinished / f"{name}.nii.gz", image, simulated.affine)
        os.replace(unfinished, folder / subject)


def split(subjects):
    """Split subjects in order: every subject is an independent draw, so shuffling is unnecessary."""
    test = max(1, round(TEST_SHARE * len(subjects)))
    validation = max(1, round(VALIDATION_SHARE * len(subjects)))
    train = len(subjects) - test - validation
    return {
        "train": subjects[:train],
        "val": subjects[train : train + validation],
        "test": subjects[train + validation :],
    }


def write_participants(path, folder, sets, labels):
    """Write one line per subject: its set and the volume of every label in mL."""
    import nibabel
    import numpy as np

    from data.geometry import voxel_ml

    lines = ["\t".join(["participant_id", "set", *(f"{name}_ml" for name in labels)])]
    for name, subjects in sets.items():
        for subject in subjects:
            image = nibabel.load(folder / subject / "label.nii.gz")
            counts = np.bincount(np.asarray(image.dataobj).ravel(), minlength=max(labels.values()) + 1)
            each = voxel_ml(image.affine)
            lines.append("\t".join([subject, name, *(f"{counts[v] * each:.1f}" for v in labels.values())]))
    write_text(path, "\n".join(lines) + "\n")


def write_text(path, text):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
