"""Optional, with step 1: agreement of constraint maps with tissue, their stability, and the number of classes.

    python -m tools.evaluate_constraint_maps --config configs/lgg_tcga.yaml --clusters 5 10 20 40 --seeds 3

Reads   the scans below data.root and their labels; for simulated scans also true_tissue, true_t1 and true_t2.nii.gz.
Writes  report/constraint_maps/ in the work dir: agreement.csv, .md and .tex (means over subjects for every K),
        change.csv, .md and .tex (paired differences to the config's K), agreement.png and .pdf, per_subject.csv, and
        subjects/<subject>.json, from which the other files are made.
Takes   10 to 40 seconds of one core and up to 1 GB per subject and job, for 8 numbers of classes and 3 seeds. Finished
        subjects are skipped unless their settings have changed. No constraint map is written.
Next    set constraint_maps.clusters in the config, then: python generate_constraint_maps.py --config FILE
"""

import difflib
import functools
import logging
import time

from utils.checks import InputError, counted
from utils.command_line import from_command_line, positive
from utils.config.schema import fingerprint
from utils.parallel import in_order
from utils.paths import composed
from utils.runs import child_seed, exit_code_of, open_run, progress, read_json, write_json

log = logging.getLogger("mrccl")

CLUSTERS = (5, 10, 15, 20, 25, 30, 40, 50)
TRUTH = ("true_tissue", "true_t1", "true_t2")
MEASURES_VERSION = 1  # increased when a measure changes, so that older results are recomputed
OUTSIDE = 0.01  # share of labelled voxels outside the foreground that is reported


def add_options(parser):
    parser.add_argument(
        "--clusters",
        type=positive,
        nargs="+",
        default=CLUSTERS,
        metavar="K",
        help=f"numbers of classes to try (default: {' '.join(map(str, CLUSTERS))}, and the config's)",
    )
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="number of seeds per K (default: 3)")
    parser.add_argument("--subjects", nargs="+", type=composed, metavar="ID", help="evaluate only these")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="subjects processed at a time (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="evaluate finished subjects again")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, needs=("constraint_maps",))
    if options.jobs < 1:
        raise InputError(f"--jobs {options.jobs}: expected at least 1")
    evaluate_constraint_maps(config, options)
    log.info(
        "look at %s, set constraint_maps.clusters, then: python generate_constraint_maps.py %s",
        report_of(config) / "agreement.png",
        options.again,
    )


def evaluate_constraint_maps(config, options):
    """Evaluate all unfinished subjects, then write the report over all finished ones."""
    everyone, wanted = find_wanted(config, options.subjects)
    clusters = sorted({1, config.constraint_maps.clusters, *options.clusters})
    if options.seeds < 2 and not any(files.label or truth_of(config, files) for files in everyone.values()):
        raise InputError("--seeds 1: nothing to compare, because no subject has a label; expected at least 2")
    settings = {name: settings_of(config, clusters, options.seeds, files) for name, files in everyone.items()}
    finished = {name for name, files in everyone.items() if is_finished(config, files, settings[name])}
    todo = [files for name, files in wanted.items() if options.overwrite or name not in finished]
    if len(todo) < len(wanted):
        log.info("%d of %d subjects finished before, skipped", len(wanted) - len(todo), len(wanted))
    refuse_unsound(config, options, todo)
    with open_run(report_of(config), config.plain(), config.seed):
        work = functools.partial(evaluate_subject, config, clusters, options.seeds)
        made = in_order(work, todo, options.jobs)
        for files, result in zip(todo, progress(made, "Constraint maps", len(todo)), strict=True):
            write_json(
                result_of(config, files.subject),
                {"settings": settings[files.subject], "files": files_of(config, files), **result},
            )
            finished.add(files.subject)
            point_out(files.subject, result)
        write_report(config, sorted(finished))


def find_wanted(config, asked):
    """Return `{subject: files}` of all subjects in the dataset, and of those requested on the command line."""
    from data.layouts.subjects import find_subjects

    everyone = find_subjects(config.data.wanted())
    mistakes = []
    for name in asked or ():
        if name not in everyone:
            near = difflib.get_close_matches(name, everyone, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            mistakes.append(f"--subjects {name}: not in '{config.data.root}'{hint}")
    if mistakes:
        raise InputError(mistakes)
    return everyone, {name: files for name, files in everyone.items() if not asked or name in asked}


def settings_of(config, clusters, seeds, files):
    """Hash all settings that affect the result of a subject."""
    plain = config.plain()
    data = {key: plain["data"][key] for key in ("contrasts", "mask", "labels", "ignored_label_values")}
    data |= config.reading()
    recipe = {key: value for key, value in plain["constraint_maps"].items() if key not in ("clusters", "spaces")}
    references = [files.label is not None, *truth_of(config, files)]
    return fingerprint(MEASURES_VERSION, data, recipe, config.seed, clusters, seeds, references)


def truth_of(config, files):
    """Return `{name: path}` of the true maps beside the scans of a simulated subject."""
    if not config.data.simulated:
        return {}
    folder = next(iter(files.contrasts.values())).parent
    return {name: path for name in TRUTH if (path := folder / f"{name}.nii.gz").is_file()}


def refuse_unsound(config, options, subjects):
    """Read every file once before the work starts, and report every problem."""
    checked = in_order(functools.partial(check_subject, config), subjects, options.jobs)
    problems = [line for found in progress(checked, "Checking scans", len(subjects)) for line in found]
    if problems:
        raise InputError(problems)
    without = [files.subject for files in subjects if len(truth_of(config, files)) < len(TRUTH)]
    if config.data.simulated and without:
        log.warning(
            "%s: no %s beside the scans of %s (%s, ...); simulate the cohort again with simulate_cohort.py for "
            "all measures",
            config.data.root,
            ", ".join(TRUTH),
            counted(len(without), "subject"),
            without[0],
        )


def check_subject(config, files):
    """Return one line for each problem of a subject's files."""
    from data.scans.subject import SubjectReader

    return SubjectReader(files, config.data.wanted(), config.constraint_maps.contrasts).problems()


def evaluate_subject(config, clusters, seeds, files):
    """Cluster one subject for every K and seed; return the measures as rows `[K, seeds, measure, label, value]`."""
    import numpy as np

    from data.constraint_maps import cluster
    from evaluation.probes.map_agreement import SAMPLE_VOXELS, agreement_with_labels, agreement_with_truth, stability

    started = time.perf_counter()
    features, labels, truth, outside = read_references(config, files)
    draw = np.random.default_rng(child_seed(config.seed, "agreement", files.subject))
    sample = draw.choice(len(features), min(SAMPLE_VOXELS, len(features)), replace=False)
    shift = int(draw.integers(len(features) // 4, 3 * len(features) // 4 + 1))
    names, rows = list(config.data.labels), []
    for k in clusters:
        maps = [cluster(features, k, seed_of_map(config, files.subject, number))[0] for number in range(seeds)]
        for number, classes in enumerate(maps):
            found = {} if labels is None else agreement_with_labels(classes, labels, names, sample, shift)
            found |= agreement_with_truth(classes, truth, sample)
            rows += [[k, str(number), measure, label, value] for (measure, label), value in found.items()]
        rows += [[k, f"{i}-{j}", "stability", "", value] for (i, j), value in stability(maps).items()]
    rows = [[*row, None if value != value else value] for *row, value in rows]  # JSON has no NaN
    seconds = round(time.perf_counter() - started, 1)
    return {"voxels": len(features), "labelled_outside": outside, "seconds": seconds, "rows": rows}


def seed_of_map(config, subject, number):
    """Return the seed of k-means; number 0 gives the seed of step 1, so that its map is evaluated as well."""
    return child_seed(config.seed, "constraint_map", subject, *([number] if number else ()))


def read_references(config, files):
    """Read one subject: the input of k-means, and the references of its classes.

    Returns:
        `(features, labels, truth, outside)`: `(voxels, P)`; labels `(voxels,)` uint8 or None; name -> true values
        `(voxels,)`, all of them in the order of the features; and the share of labelled voxels outside the foreground.
    """
    import numpy as np

    from data.constraint_maps import contrast_space
    from data.scans.subject import SubjectReader

    section = config.constraint_maps
    reader = SubjectReader(files, config.data.wanted(), section.contrasts)
    volume, mask, affine = reader.volume(), reader.mask(), reader.grid.affine
    recipe = section.model_dump(exclude={"contrasts", "clusters", "spaces"})
    space = contrast_space(volume, mask, **recipe, affine=affine)
    # Indices of the foreground voxels in the order of the features.
    place = space.restore(np.arange(1, len(space.features) + 1))
    order = np.flatnonzero(place)[np.argsort(place[place > 0])]
    labels, outside = None, None
    if files.label is not None:
        whole = reader.label()
        labels = whole.ravel()[order]
        outside = 1 - np.count_nonzero(labels) / np.count_nonzero(whole)
    truth = read_truth(config, files, reader.grid)
    return space.features, labels, {name: values.ravel()[order] for name, values in truth.items()}, outside


def read_truth(config, files, grid):
    """Read the true maps of a simulated subject, `{name: (X, Y, Z)}`; they must lie on the grid of the scans."""
    import dataclasses

    import numpy as np

    from data.scans.subject import SubjectReader

    paths = truth_of(config, files)
    if not paths:
        return {}
    wanted = dataclasses.replace(config.data.wanted(), contrasts=dict.fromkeys(paths, ""))
    reader = SubjectReader(dataclasses.replace(files, contrasts=paths), wanted)
    values = reader.volume()
    if values.shape[:3] != grid.shape or not np.allclose(reader.grid.affine, grid.affine, atol=1e-3):
        raise InputError(f"{files.subject}: {', '.join(paths)} and the scans are not on one grid; simulate them again")
    return {
        name: values[..., n].astype(np.uint8 if name == "true_tissue" else np.float32) for n, name in enumerate(paths)
    }


def point_out(subject, result):
    """Warn about a subject with labels outside the maps."""
    if (result["labelled_outside"] or 0) > OUTSIDE:
        share = 100 * result["labelled_outside"]
        log.warning("%s: %.1f %% of the labelled voxels lie outside the foreground and are not counted", subject, share)


def write_report(config, subjects):
    """Write tables and figure over all finished subjects."""
    import pandas

    from evaluation.probes.map_figures import agreement_against_clusters
    from evaluation.probes.map_tables import (
        ENOUGH,
        REFERENCES,
        agreement_table,
        average_agreement,
        change_table,
        enough_clusters,
        title_of,
    )
    from evaluation.report.figures import save_figure
    from evaluation.report.tables import write_table

    columns = ["clusters", "seed", "measure", "label", "value"]
    results = {name: read_json(result_of(config, name))["rows"] for name in subjects}
    rows = pandas.DataFrame([[name, *row] for name in subjects for row in results[name]], columns=["subject", *columns])
    rows["value"] = rows["value"].astype(float)
    rows.to_csv(report_of(config) / "per_subject.csv", index=False)
    numbers, note = average_agreement(rows), "Simulated scans." if config.data.simulated else ""
    own, title = config.constraint_maps.clusters, f"{note} {config.name}.".strip()
    write_table(agreement_table(numbers, title), report_of(config))
    if rows["clusters"].isin({1, own}).sum() < len(rows):
        write_table(change_table(rows, own, title), report_of(config))
    figure = agreement_against_clusters(numbers, own, title)
    save_figure(figure, report_of(config), "agreement")
    for (measure, label), line in numbers.groupby(["measure", "label"], sort=False):
        if label not in REFERENCES:
            log.info("%s: within %g of its best from K = %d", title_of(measure, label), ENOUGH, enough_clusters(line))
    log.info("%s: %s", report_of(config) / "agreement.md", counted(len(subjects), "subject"))


def report_of(config):
    return config.work.report / "constraint_maps"


def result_of(config, subject):
    return report_of(config) / "subjects" / f"{subject}.json"


def is_finished(config, files, settings):
    """Tell whether there is a result with the same settings and, if recorded, the same files."""
    path = result_of(config, files.subject)
    found = read_json(path) if path.is_file() else {}
    if found.get("settings") != settings:
        return False
    return "files" not in found or found["files"] == files_of(config, files)


def files_of(config, files):
    """Describe all files of a subject from which a result is made."""
    from data.scans.subject import SubjectReader

    others = truth_of(config, files) | ({"label": files.label} if files.label else {})
    return SubjectReader(files, config.data.wanted(), config.constraint_maps.contrasts).note(others=others)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
