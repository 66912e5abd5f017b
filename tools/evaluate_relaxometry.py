"""Optional, with step 1: how much of a fitted T2*, T2 or T1 constraint maps separate, by the number of images.

    python -m tools.evaluate_relaxometry --config configs/studies/kidney_relaxometry_t2.yaml \
        --map "{subject}/t2.nii.gz" --quality "{subject}/fit_r2.nii.gz" --limits 1 500 --model decay

Reads   the images below data.root, and beside them the fitted map (ms), the map of the goodness of its fit, and the
        echo or inversion times. Subjects without a fitted map are left out.
Writes  report/relaxometry/ in the work dir: agreement.csv, .md and .tex, agreement.png and .pdf, all_values.csv, and
        <subject>.png, which shows a constraint map beside the fitted map.
Takes   2 to 8 minutes of one core and up to 1 GB per subject, for 12 images and 5 seeds. Every run starts anew.
Next    choose contrasts that separate tissue, then: python generate_constraint_maps.py --config FILE
"""

import functools
import logging

from utils.checks import InputError, counted
from utils.command_line import from_command_line, positive
from utils.parallel import in_order
from utils.paths import composed
from utils.runs import child_seed, exit_code_of, open_run, progress

log = logging.getLogger("mrccl")

NUMBERS = (2, 3, 4, 6, 8)
SHOWN = 4  # images of the constraint map in the picture, or the next number above


def add_options(parser):
    pattern = {"type": composed, "metavar": "PATH", "required": True}
    parser.add_argument("--map", **pattern, help="path of the fitted map in ms below data.root, with {subject}")
    parser.add_argument("--quality", **pattern, help="path of the map of its goodness of fit, with {subject}")
    text = "voxels are compared where the quality is above this (default: 0.9)"
    parser.add_argument("--above", type=float, default=0.9, metavar="R2", help=text)
    text = "lowest and highest time of a fit, ms; voxels of the fitted map at a limit are not compared"
    parser.add_argument("--limits", type=float, nargs=2, required=True, metavar="MS", help=text)
    text = "decay: S = a exp(-t/T) of echoes; recovery: S = |a - b exp(-t/T)| of inversion times"
    parser.add_argument("--model", choices=("decay", "recovery"), required=True, help=text)
    text = "table below data.root with the columns subject and times_ms, commas between the times of a subject"
    parser.add_argument("--times", default="participants.tsv", metavar="FILE", help=text)
    text = f"numbers of images to cluster (default: {' '.join(map(str, NUMBERS))}; all are always included)"
    parser.add_argument("--images", type=positive, nargs="+", default=NUMBERS, metavar="N", help=text)
    text = "which images: the middles of equal parts of the series, or with the first and the last (default: inner)"
    parser.add_argument("--choice", choices=("inner", "ends"), default="inner", help=text)
    parser.add_argument(
        "--seeds", type=positive, default=5, metavar="N", help="number of seeds of k-means (default: 5)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects processed at a time (default: 1)")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("constraint_maps",))
    if not 0 < options.limits[0] < options.limits[1]:
        raise InputError(
            f"--limits {options.limits[0]:g} {options.limits[1]:g}: expected two times, 0 < lowest < highest"
        )
    evaluate_relaxometry(config, options)
    log.info(
        "look at %s, then: python generate_constraint_maps.py %s", report_of(config) / "agreement.png", options.again
    )


def evaluate_relaxometry(config, options):
    """Evaluate all subjects that have a fitted map, and write the report."""
    import pandas

    from evaluation.probes.relaxation import COLUMNS

    subjects = find_fitted(config, options)
    times = {files.subject: times_of(config, options, files.subject) for files in subjects}
    with open_run(report_of(config), config.plain(), config.seed):
        work = functools.partial(evaluate_subject, config, options, times)
        made = in_order(work, subjects, options.jobs)
        rows = []
        for files, found in zip(subjects, progress(made, "Relaxometry", len(subjects)), strict=True):
            rows += [[files.subject, *row] for row in found]
        write_report(config, pandas.DataFrame(rows, columns=["subject", *COLUMNS]))


def find_fitted(config, options):
    """Return the files of the subjects with a fitted map; a problem of other subjects is none here."""
    from data.layouts.subjects import find_subjects

    failures, root = [], config.data.root
    everyone = find_subjects(config.data.wanted(), failures)
    incomplete = {line.split(":")[0]: line for line in failures}
    fitted = [name for name in sorted({*everyone, *incomplete}) if path_of(root, options.map, name).is_file()]
    if problems := [incomplete[name] for name in fitted if name in incomplete]:
        raise InputError(problems)
    if not fitted:
        raise InputError(f"--map {options.map}: no subject in '{root}' has this file")
    if others := sorted({*everyone, *incomplete} - {*fitted}):
        log.info("without '%s', left out: %s", options.map, ", ".join(others))
    return [everyone[name] for name in fitted]


def path_of(root, pattern, subject):
    if "{subject}" not in pattern:
        raise InputError(f"'{pattern}': write '{{subject}}' where the name of the subject stands")
    return root / pattern.replace("{subject}", subject)


def times_of(config, options, subject):
    """Return the echo or inversion times of a subject, `(C,)` ms, in the order of the clustered contrasts."""
    import numpy as np
    import pandas

    path, names = config.data.root / options.times, config.constraint_maps.contrasts
    if not path.is_file():
        raise InputError(f"--times {options.times}: '{path}' does not exist; give a table below data.root")
    table = pandas.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", dtype=str)
    if missing := {"subject", "times_ms"} - {*table.columns}:
        raise InputError(f"--times {options.times}: has no column {' and no column '.join(sorted(missing))}")
    rows = table.loc[table["subject"] == subject, "times_ms"].tolist()
    if len(rows) != 1:
        raise InputError(f"--times {options.times}: {counted(len(rows), 'row')} for {subject}, expected 1")
    times = pandas.to_numeric(pandas.Series(str(rows[0]).split(",")), errors="coerce").to_numpy(float)
    if len(times) != len(names) or not (np.diff(times, prepend=0) > 0).all():  # also if one is not a number
        raise InputError(
            f"--times {options.times}: {subject} has the times {rows[0]}; expected one per contrast, ascending as in "
            f"constraint_maps.contrasts ({len(names)}: {', '.join(names)})"
        )
    return times


def evaluate_subject(config, options, times, files):
    """Measure one subject and draw its picture; returns rows in the order of `relaxation.COLUMNS`."""
    from evaluation.probes.relaxation import agreement_by_images, agreement_of_single_images

    section = config.constraint_maps
    scan = read_scan(config, options, times[files.subject], files)
    recipe = section.model_dump(exclude={"contrasts", "clusters", "spaces"})
    seeds = [seed_of_map(config, files.subject, number) for number in range(options.seeds)]
    rows = agreement_by_images(scan, images_of_maps(options, scan), recipe, section.clusters, seeds)
    rows += agreement_of_single_images(scan, section.contrasts, recipe, section.clusters, seeds)
    draw_subject(config, options, scan, files.subject)
    return rows


def images_of_maps(options, scan):
    """Return the images of every map, the fewest first; the last map has all of them."""
    from evaluation.probes.relaxation import spread_images

    total = len(scan.times_ms)
    numbers = sorted({*(number for number in options.images if 1 < number < total), total})
    return [spread_images(number, total, options.choice) for number in numbers]


def seed_of_map(config, subject, number):
    """Return the seed of k-means; number 0 gives the seed of step 1."""
    return child_seed(config.seed, "constraint_map", subject, *([number] if number else ()))


def read_scan(config, options, times, files):
    """Read images, mask and fitted map of a subject into a `Relaxometry`; scale factors of the files apply."""
    import dataclasses

    import numpy as np

    from data.scans.subject import SubjectReader
    from evaluation.probes.relaxation import Relaxometry

    root, wanted = config.data.root, config.data.wanted()
    reader = SubjectReader(files, wanted, config.constraint_maps.contrasts)
    volume, mask, grid = reader.volume(), reader.mask(), reader.grid
    if mask is None:
        raise InputError("data.mask: none; give the mask within which the relaxation time was fitted")
    paths = {"map": path_of(root, options.map, files.subject), "quality": path_of(root, options.quality, files.subject)}
    others = dataclasses.replace(wanted, contrasts=dict.fromkeys(paths, ""))
    fitted, quality = np.moveaxis(
        SubjectReader(dataclasses.replace(files, contrasts=paths), others, grid=grid).volume(), 3, 0
    )
    low, high = options.limits
    good = mask & (quality > options.above)
    chosen = good & (fitted > low) & (fitted < high)
    if np.ptp(fitted[chosen]) == 0 if chosen.any() else True:
        raise InputError(
            f"{files.subject}: no two values of '{paths['map']}' to compare; lower --above, widen --limits"
        )
    log.info(
        "%s: %d of %d voxels of the mask compared; quality above %g: %d, of these at a limit of the fit: %d; "
        "median %.1f ms, standard deviation of ln T %.3f",
        *(files.subject, chosen.sum(), mask.sum(), options.above, good.sum(), good.sum() - chosen.sum()),
        *(np.median(fitted[chosen]), np.std(np.log(fitted[chosen].astype(float)))),
    )
    return Relaxometry(volume, mask, grid.affine, times, fitted, chosen, (low, high), options.model)


def draw_subject(config, options, scan, subject):
    """Draw the constraint map of few images, that of the first seed, beside the fitted map."""
    from data.constraint_maps import constraint_map
    from evaluation.probes.relaxation_figures import draw_maps

    section, maps = config.constraint_maps, images_of_maps(options, scan)
    recipe = section.model_dump(exclude={"contrasts", "spaces"})
    seed = seed_of_map(config, subject, 0)
    images = next((some for some in maps if len(some) >= SHOWN), maps[-1])
    classes = constraint_map(scan.volume[..., images], scan.mask, **recipe, seed=seed, affine=scan.affine)
    title = f"{config.name}: {subject}, map of {len(images)} of {len(scan.times_ms)} images"
    draw_maps(report_of(config) / f"{subject}.png", scan, classes, title)


def write_report(config, rows):
    """Write values, table and figure."""
    from evaluation.probes.relaxation_figures import agreement_against_images
    from evaluation.probes.relaxation_tables import relaxometry_table
    from evaluation.report.figures import save_figure
    from evaluation.report.tables import write_table

    rows.to_csv(report_of(config) / "all_values.csv", index=False)
    title = (
        f"{'Simulated scans. ' if config.data.simulated else ''}{config.name}, K = {config.constraint_maps.clusters}."
    )
    table = relaxometry_table(rows, title)
    write_table(table, report_of(config))
    save_figure(agreement_against_images(table.numbers, title), report_of(config), "agreement")
    log.info("%s: %s", report_of(config) / "agreement.md", counted(rows["subject"].nunique(), "subject"))


def report_of(config):
    return config.work.report / "relaxometry"


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
