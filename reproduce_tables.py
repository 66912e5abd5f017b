"""Step 5 of 5: from the metrics of all cells to tables, figures and one HTML page.

    python reproduce_tables.py --config configs/lgg_tcga.yaml
    python reproduce_tables.py --scores results/lgg_tcga/scores.csv

Reads   finetuning/<contrasts>/<init>/n<NN>/r<K>/ and synthesis/<init>/n<NN>/r<K>/, metrics.json and predictions/ of
        each (step 4), pretraining/<stage>/history.csv (step 3), the images and labels of the test subjects (with
        cross-validation of all folds) and, if the config names a paper, its numbers in papers/expected.yaml. With
        --scores, none of these: only the scores and the config.yaml beside them.
Writes  report/tables/*.{csv,md,tex}, report/figures/*.{png,pdf} and report/index.html in the work dir;
        with --scores beside that file (or in --work-dir), without parts that need scans, predictions or curves.
Takes   seconds to a minute. Nothing is trained; every call rewrites the report. Missing cells are named, not hidden.
Next    open report/index.html in a browser, or: python predict.py --help
"""

import dataclasses
import functools
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

from utils.checks import InputError
from utils.command_line import from_command_line
from utils.config.schema import channel_names
from utils.runs import exit_code_of, open_run

log = logging.getLogger("mrccl")
ALONE = "Made from the scores alone: no pictures of test subjects and no curves of pretraining."


def add_options(parser):
    text = "scores.csv of a report, from which tables and figures are made with the config.yaml beside it"
    parser.add_argument("--scores", type=Path, metavar="FILE", help=text)


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments, add_options, beside="scores")
    # Deferred so that --help and config errors are answered before pandas and matplotlib are loaded.
    from evaluation.report.formats import print_table
    from evaluation.scores.measures import SEGMENTATION, SYNTHESIS

    found, notes = read_tasks(config, options)
    folder = config.work_dir / "report"
    with open_run(folder, config.plain(), config.seed):
        for part in ("tables", "figures"):  # removed first, so that no outdated file remains
            shutil.rmtree(folder / part, ignore_errors=True)
        tables = write_report_of(config, found.get(SEGMENTATION), found.get(SYNTHESIS), notes, folder)
    for table in tables:
        if table.name in ("dice", "dice_differences", "synthesis", "synthesis_differences"):
            print_table(table)
    print(f"report: {(folder / 'index.html').resolve()}")


def read_tasks(config, options):
    """Read the scores of all tasks in a config: `{task: Scores}`, and a sentence on each that is missing.

    Raises:
        InputError: No task has a finished cell, or a file cannot be read.
    """
    from evaluation.scores.measures import SEGMENTATION, SYNTHESIS
    from evaluation.scores.scores import files_of, nothing_of, read_scores
    from evaluation.scores.scores_csv import read_scores_csv

    tasks = [task for task in (SEGMENTATION, SYNTHESIS) if getattr(config, task.folder) is not None]
    if not tasks:
        raise InputError(f"{options.config}: this step needs the section 'finetuning:' or 'synthesis:'")
    if options.scores:
        scores = read_scores_csv(options.scores)
        if scores.task not in tasks:
            raise InputError(f"{options.config}: no section '{scores.task.folder}:', of which {options.scores} is")
        return {scores.task: dataclasses.replace(scores, **about(config, scores.task))}, [ALONE]
    missing = {task: nothing_of(config.work_dir, task) for task in tasks if not files_of(config.work_dir, task)}
    if len(missing) == len(tasks):
        raise InputError(list(missing.values()))
    found = {task: read_scores(config.work_dir, task, **about(config, task)) for task in tasks if task not in missing}
    return found, list(missing.values())


def about(config, task):
    """Return what tables and figures need to know about the scores of a task."""
    return {
        "inits": tuple(getattr(config, task.folder).inits),
        "is_simulated": config.data.simulated,
        "surface_tolerance_mm": config.evaluation.surface_tolerance_mm,
        "lesion_overlap": config.evaluation.lesion_overlap,
    }


def write_report_of(config, segmentation, synthesis, notes, folder):
    """Write tables, figures and page for segmentation, synthesis, or both; returns the tables."""
    from evaluation.report.segmentation import draw_galleries
    from evaluation.scores.external import external_notes
    from evaluation.scores.gaps import dead_notes, lesion_notes

    tables, figures, galleries = [], [], []
    if segmentation is not None:
        segmentation = in_config_order(config, segmentation)
        tables += make_tables(config, segmentation, folder / "tables")
        figures, figure_notes = make_figures(config, segmentation, folder / "figures")
        if segmentation.work_dir:
            galleries, gallery_notes = draw_galleries(segmentation, scans_of(config), config.data.legend())
            figure_notes += gallery_notes
        notes = notes + external_notes(segmentation) + grid_gaps(config, segmentation)
        notes += lesion_notes(segmentation, config.evaluation.lesions)
        notes += dead_notes(segmentation) + figure_notes
    if synthesis is not None:
        tables += make_synthesis_tables(config, synthesis, folder / "tables")
        more_figures, more_notes = make_synthesis_figures(config, synthesis, folder / "figures")
        figures += more_figures
        notes = notes + synthesis_gaps(config, synthesis) + more_notes
    figures += draw_training_curves(config, folder / "figures")
    shown = Shown(tables, figures, galleries, notes)
    write_page(config, segmentation, synthesis, shown, folder / "index.html")
    return tables


def in_config_order(config, scores):
    """Sort the rows by contrasts in the order of the config, which figures then follow."""
    order = {name: place for place, name in enumerate(config.finetuning.contrasts)}
    rows = scores.frame.sort_values("contrasts", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    return dataclasses.replace(scores, frame=rows)


def make_tables(config, scores, folder):
    """Write all tables; returns those to show, with the paper's numbers and the Dice first."""
    from evaluation.report.tables import difference_table, duration_table, score_table
    from evaluation.scores.agreement import bland_altman_table
    from evaluation.scores.savings import savings_table

    scored = [score_table(scores, measure) for measure in scores.measures]
    tables = [
        paper_table(config, scores),
        *scored[:1],
        difference_table(scores),
        savings_table(scores),
        difference_table(scores, by_label=True),
        *scored[1:],
        bland_altman_table(scores),
        duration_table(scores),
    ]
    return write_tables(tables, scores, folder, "scores.csv")


def make_synthesis_tables(config, synthesis, folder):
    """Write all synthesis tables; returns those that exist, with the paper's numbers first."""
    from evaluation.report.synthesis_tables import synthesis_tables

    tables = [paper_table(config, synthesis), *synthesis_tables(synthesis)]
    return write_tables(tables, synthesis, folder, "synthesis_scores.csv")


def paper_table(config, scores):
    """Compare the paper's numbers with ours; None if the config names no paper, or one on the other task."""
    from evaluation.scores.expected import expected_table, read_expected
    from evaluation.scores.measures import SYNTHESIS

    entry = read_expected(config.paper) if config.paper else None
    if entry is None or entry.is_about_synthesis() != (scores.task is SYNTHESIS):
        return None
    return expected_table(scores, entry)


def write_tables(tables, scores, folder, name):
    """Write all tables that exist, and every single score; returns the tables."""
    from evaluation.report.tables import write_table
    from evaluation.scores.scores_csv import write_scores

    tables = [table for table in tables if table]
    for table in tables:
        write_table(table, folder)
    write_scores(scores, folder / name)
    return tables


def make_figures(config, scores, folder):
    """Draw all figures; returns them for the page, and notes on those that could not be drawn."""
    from evaluation.report.segmentation import draw_agreement, draw_dice, draw_lesions, draw_overlay_figures

    figures, notes = [*draw_dice(scores, folder), *draw_lesions(scores, folder), *draw_agreement(scores, folder)], []
    if scores.work_dir:
        overlays, notes = draw_overlay_figures(scores, scans_of(config), config.data.legend(), folder)
        figures += overlays
    if not config.data.voxel_size_known:
        notes = [*notes, "The voxel size is not known: no distances in mm, no volumes in mL, no Bland-Altman plots."]
    return figures, notes


def make_synthesis_figures(config, synthesis, folder):
    """Draw SSIM, MSE and PSNR against N, and error maps; returns them, and notes on those that cannot be drawn."""
    from evaluation.report.synthesis import draw_error_figures, draw_scores_against_n

    against_n = draw_scores_against_n(synthesis, folder)
    if synthesis.work_dir is None:
        return against_n, []
    errors, notes = draw_error_figures(synthesis, finder_of(config), folder, config.data.wanted())
    return against_n + errors, notes


def scans_of(config):
    """Return a function of an input set that gives files by subject, the contrast to show, and their `Wanted`."""
    find_files, wanted = finder_of(config), config.data.wanted()
    chosen = config.finetuning.contrasts
    return lambda contrasts: (find_files(), chosen.get(contrasts, list(wanted.contrasts))[0], wanted)


def finder_of(config):
    """Return a function that finds the files of all subjects, searching only once."""
    from data.layouts.subjects import find_subjects

    return functools.cache(lambda: find_subjects(config.data.wanted()))


def draw_training_curves(config, folder):
    """Draw the curves of all finished pretraining stages, all folds in one panel."""
    from evaluation.report.figures import CURVES_SHOW, save_figure, training_curves
    from evaluation.report.page import ReportFigure, collect_histories

    histories = collect_histories(config.work_dir, config.pretraining.stages if config.pretraining else ())
    if not histories:
        return []
    note = "Simulated scans." if config.data.simulated else ""
    png = save_figure(training_curves(histories, note), folder, "pretraining_curves")
    return [ReportFigure("Pretraining", CURVES_SHOW, (png,))]


class Shown(NamedTuple):
    """What a page shows besides scores: lists of `Table`, `ReportFigure`, galleries of pictures, and notes."""

    tables: list
    figures: list
    galleries: list
    notes: list


def write_page(config, segmentation, synthesis, shown, path):
    """Write the HTML page; `segmentation` or `synthesis` is None if the config lacks it."""
    import yaml

    from evaluation.pictures.thumbnails import RULE
    from evaluation.report.answers import answers
    from evaluation.report.page import Report, collect_runs, page_facts, subject_grid, subtitle, write_report
    from evaluation.scores.measures import DICE, MASK, measures_in

    for line in shown.notes:
        log.warning("%s", line)
    runs = collect_runs(config.work_dir)
    ssim, *_ = measures_in(MASK)
    found = [(segmentation, DICE), (synthesis, ssim)]
    report = Report(
        title=config.name,
        is_simulated=config.data.simulated,
        facts=page_facts(segmentation, synthesis, runs, config.seed),
        notes=shown.notes,
        tables=shown.tables,
        figures=shown.figures,
        subjects=None if segmentation is None else subject_grid(segmentation, DICE),
        galleries=shown.galleries,
        gallery_rule=RULE,
        label_colours={label.name: label.colour for label in config.data.legend()},
        runs=runs,
        config_text=yaml.safe_dump(config.plain(), sort_keys=False),
        subtitle=subtitle(segmentation, synthesis),
        synthesis_subjects=None if synthesis is None else subject_grid(synthesis, ssim),
        answers=tuple(answers(scores, measure) for scores, measure in found if scores is not None),
    )
    write_report(path, report)


def grid_gaps(config, scores):
    """List what the config asks for but the work dir lacks, and cells made with another config."""
    from evaluation.scores.external import is_external

    def hash_of(contrasts, init):
        return config.hash_of_scoring() if is_external(init) else config.hash_of_cell(contrasts, init)

    return gaps_of(config, scores, config.finetuning, config.finetuning.contrasts, hash_of, "segmentation")


def synthesis_gaps(config, synthesis):
    """Do the same for synthesis, whose only input set is named after its channels."""
    inputs = "+".join(channel_names(config.data.contrasts, config.synthesis.inputs))
    grid, hash_of = config.synthesis, config.hash_of_synthesis
    return gaps_of(config, synthesis, grid, [inputs], lambda _, init: hash_of(init), "synthesis")


def gaps_of(config, scores, grid, contrasts, hash_of, task):
    """List the gaps in one grid; `hash_of` gives the expected hash of cells, by contrasts and init."""
    from evaluation.scores.external import is_external
    from evaluation.scores.gaps import missing_cells, outdated_cells

    splits = config.plain()["data"]["splits"]
    folds = [f"fold{k}" for k in range(splits["folds"])] if isinstance(splits, dict) and "folds" in splits else [""]
    inits = ("random", *(config.pretraining.stages if config.pretraining else ()))
    gaps = missing_cells(scores, contrasts, grid.inits, grid.subjects_n, grid.repeats, folds)
    lines = [f"Missing: {gap}; run finetune_{task}.py" for gap in gaps]
    return lines + outdated_cells(scores, contrasts, (*inits, *filter(is_external, scores.present)), hash_of)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
