"""Step 5 of 5: from the metrics of all cells to tables, figures and one HTML page.

    python reproduce_tables.py --config configs/lgg_tcga.yaml

Reads   finetuning/<contrasts>/<init>/n<NN>/r<K>/ and synthesis/<init>/n<NN>/r<K>/, metrics.json and predictions/ of
        each (step 4), pretraining/<stage>/history.csv (step 3), the images and labels of the test subjects, with
        cross-validation those of all folds; and, where the config names a paper, its numbers in papers/expected.yaml.
Writes  report/tables/*.{csv,md,tex}, report/figures/*.{png,pdf} and report/index.html in the work dir.
Takes   seconds to a minute. Nothing is trained; every call writes the report anew. Missing cells are named, not hidden.
Next    open report/index.html in a browser, or: python predict.py --help
"""

import functools
import logging
import shutil

from utils.checks import InputError
from utils.config import from_command_line
from utils.runs import exit_code_of, open_run
from utils.schema import channel_names

log = logging.getLogger("mrccl")


def main(arguments=None):
    config, options = from_command_line(__doc__, arguments)
    # Deferred so that --help and config mistakes answer before pandas and matplotlib are loaded.
    from evaluation.formats import print_table
    from evaluation.results import SEGMENTATION, SYNTHESIS, collect_tasks

    tasks = [task for task in (SEGMENTATION, SYNTHESIS) if getattr(config, task.folder) is not None]
    if not tasks:
        raise InputError(f"{options.config}: this step needs the section 'finetuning:' or 'synthesis:'")
    found, notes = collect_tasks(config.work_dir, tasks)
    folder = config.work_dir / "report"
    with open_run(folder, config.plain(), config.seed):
        for part in ("tables", "figures"):  # written anew, so that nothing outdated stays beside the new
            shutil.rmtree(folder / part, ignore_errors=True)
        tables = write_report_of(config, found.get(SEGMENTATION), found.get(SYNTHESIS), notes, folder)
    for table in tables:
        if table.name in ("dice", "dice_differences", "synthesis", "synthesis_differences"):
            print_table(table)
    print(f"report: {(folder / 'index.html').resolve()}")


def write_report_of(config, results, synthesis, notes, folder):
    """Write tables, figures and page of segmentation, of synthesis, or of both; returns the tables."""
    from evaluation.results import dead_notes

    tables, figures, galleries = [], [], []
    if results is not None:
        results = in_config_order(config, results)
        tables += make_tables(config, results, folder / "tables")
        figures, figure_notes = make_figures(config, results, folder / "figures")
        galleries, gallery_notes = make_galleries(config, results)
        notes = notes + grid_gaps(config, results) + dead_notes(results) + figure_notes + gallery_notes
    if synthesis is not None:
        tables += make_synthesis_tables(config, synthesis, folder / "tables")
        more_figures, more_notes = make_synthesis_figures(config, synthesis, folder / "figures")
        figures += more_figures
        notes = notes + synthesis_gaps(config, synthesis) + more_notes
    figures += draw_training_curves(config, folder / "figures")
    write_page(config, results, tables, figures, galleries, notes, folder / "index.html", synthesis)
    return tables


def in_config_order(config, results):
    """Sort the rows by contrasts as the config lists them, so that figures show them in that order."""
    order = {name: place for place, name in enumerate(config.finetuning.contrasts)}
    return results.sort_values("contrasts", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def make_tables(config, results, folder):
    """Write all tables; returns those that a reader should see, the paper's numbers and the Dice first."""
    from evaluation.agreement import bland_altman_table
    from evaluation.savings import savings_table
    from evaluation.tables import TITLES, difference_table, duration_table, score_table

    note, inits = simulated_note(config), config.finetuning.inits
    known = [metric for metric in TITLES if results[metric].notna().any()]
    tolerance = {"surface_dice": f"{note} Tolerance {config.evaluation.surface_tolerance_mm:g} mm.".strip()}
    dice, *others = [score_table(results, metric, inits, tolerance.get(metric, note)) for metric in known]
    tables = [
        paper_table(config, results, is_synthesis=False),
        dice,
        difference_table(results, inits, note),
        savings_table(results, inits, note),
        difference_table(results, inits, note, by_label=True),
        *others,
        bland_altman_table(results, inits, note),
        duration_table(results, inits, note),
    ]
    return write_tables(config, tables, results, folder, "scores.csv")


def make_synthesis_tables(config, synthesis, folder):
    """Write all tables of synthesis; returns those that there are, the paper's numbers first."""
    from evaluation.synthesis_tables import synthesis_tables

    tables = [paper_table(config, synthesis, is_synthesis=True)]
    tables += synthesis_tables(synthesis, config.synthesis.inits, simulated_note(config))
    return write_tables(config, tables, synthesis, folder, "synthesis_scores.csv")


def paper_table(config, results, is_synthesis):
    """The paper's numbers and ours; None where the config names no paper, or one on the other task."""
    from evaluation.expected import expected_table, read_expected

    entry = read_expected(config.paper) if config.paper else None
    if entry is None or entry.is_about_synthesis() != is_synthesis:
        return None
    return expected_table(results, entry, simulated_note(config))


def write_tables(config, tables, results, folder, scores):
    """Write the tables that there are, and every single score; returns the tables."""
    from evaluation.tables import write_table

    tables = [table for table in tables if table]
    for table in tables:
        write_table(table, folder)
    folders = [str(cell.relative_to(config.work_dir)) for cell in results["folder"]]
    results.assign(folder=folders).to_csv(folder / scores, index=False)
    return tables


def make_figures(config, results, folder):
    """Draw all figures; returns them for the page, and notes on those that could not be drawn."""
    from evaluation.segmentation_report import draw_agreement

    agreement = draw_agreement(results, config.finetuning.inits, simulated_note(config), folder)
    overlays, notes = draw_overlay_figures(config, results, folder)
    figures = [*draw_dice_figures(config, results, folder), *agreement, *overlays]
    if not config.data.voxel_size_known:
        notes = [*notes, "The voxel size is not known: no distances in mm, no volumes in mL, no Bland-Altman plots."]
    return figures, notes


def make_synthesis_figures(config, synthesis, folder):
    """Draw SSIM, MSE and PSNR against N and error maps; returns them, and notes on those that are not possible."""
    from evaluation.synthesis_report import draw_error_figures, draw_scores_against_n

    note, inits = simulated_note(config), config.synthesis.inits
    find_files, keys = files_and_keys(config)
    errors, notes = draw_error_figures(synthesis, find_files, inits, note, folder, **keys)
    return draw_scores_against_n(synthesis, inits, note, folder) + errors, notes


def draw_dice_figures(config, results, folder):
    """Dice against N, over labels and by label, and violins at the largest N."""
    from evaluation.segmentation_report import draw_dice

    return draw_dice(results, config.finetuning.inits, simulated_note(config), folder)


def draw_overlay_figures(config, results, folder):
    """Overlays at the smallest and the largest N of each input set, and notes on those that are not possible."""
    from evaluation.figures import save_figure
    from evaluation.overlays import RULE, draw_overlays, read_pictures
    from evaluation.report import ReportFigure
    from evaluation.results import in_grid_order, per_subject

    pngs, notes = [], []
    for contrasts, at_contrasts in results.groupby("contrasts", sort=False):
        for n in sorted({at_contrasts["n_annotated"].min(), at_contrasts["n_annotated"].max()}):
            cells = at_contrasts[at_contrasts["n_annotated"] == n]
            inits = in_grid_order(set(cells["init"]), config.finetuning.inits)
            try:
                files, shown, keys = scans_of(config, contrasts)
                pictures = read_pictures(cells, per_subject(cells), files, inits, shown, **keys)
            except InputError as error:
                notes.append(f"No overlay of {contrasts} at N = {n}: {error.lines[0]}")
                continue
            title = f"{simulated_note(config)} {contrasts} (image: {shown}), N = {n} annotated subjects".strip()
            figure = draw_overlays(pictures, list(config.data.labels), title)
            pngs.append(save_figure(figure, folder, f"overlay_{contrasts}_n{n:02d}"))
    return [ReportFigure("Median and worst test subject", RULE, tuple(pngs))] if pngs else [], notes


def make_galleries(config, results):
    """Draw small pictures of all test subjects at the largest limited N of each input set; returns them and notes."""
    from evaluation.report import Gallery
    from evaluation.results import in_grid_order, per_subject
    from evaluation.thumbnails import BUDGET_BYTES, draw_thumbnails

    galleries, notes = [], []
    for contrasts, cells in results.groupby("contrasts", sort=False):
        limited = cells[~(cells["n_annotated"] >= cells["annotated_available"].min())]
        n = (limited if len(limited) else cells)["n_annotated"].max()
        cells = cells[cells["n_annotated"] == n]
        inits, budget = in_grid_order(set(cells["init"]), config.finetuning.inits), BUDGET_BYTES
        try:
            files, shown, keys = scans_of(config, contrasts)
        except InputError as error:
            notes.append(f"No pictures of the test subjects of {contrasts}: {error.lines[0]}")
            continue
        budget //= results["contrasts"].nunique()
        subjects, skipped = draw_thumbnails(cells, per_subject(cells), files, inits, shown, budget=budget, **keys)
        galleries.append(Gallery(f"{contrasts} (image: {shown}), N = {n} annotated subjects", subjects))
        notes += [f"{contrasts}, N = {n}: {line}" for line in skipped]
    return galleries, notes


def scans_of(config, contrasts):
    """Find the scans behind an input set: files by subject, the contrast to show, and how to read them."""
    find_files, keys = files_and_keys(config)
    shown = config.finetuning.contrasts.get(contrasts, list(keys["contrasts"]))[0]
    return find_files(), shown, keys


def files_and_keys(config):
    """Return a function that finds the files of all subjects, and how to read them."""
    from data.layouts import find_subjects

    data = config.plain()["data"]
    keys = {"contrasts": data["contrasts"], "labels": data["labels"], "ignored": data["ignored_label_values"]}
    return functools.cache(lambda: find_subjects(**config.data.places())), keys


def draw_training_curves(config, folder):
    """Curves of the pretraining stages that have run, all folds in one panel."""
    from evaluation.figures import save_figure, training_curves
    from evaluation.report import ReportFigure, collect_histories

    histories = collect_histories(config.work_dir, config.pretraining.stages if config.pretraining else ())
    if not histories:
        return []
    png = save_figure(training_curves(histories, simulated_note(config)), folder, "pretraining_curves")
    caption = (
        "Loss on training slices and on the fixed validation slices. Beside it, where a stage contrasts, the health of "
        "its representations on the validation slices: spread (0: collapsed), anchors without positive or negative, "
        "alignment and uniformity."
    )
    return [ReportFigure("Pretraining", caption, (png,))]


def write_page(config, results, tables, figures, galleries, notes, path, synthesis=None):
    """Write the HTML page; `results` is None without segmentation, `synthesis` without synthesis."""
    import yaml

    from evaluation.overlays import label_colour
    from evaluation.report import Report, collect_runs, page_facts, subject_grid, subtitle, write_report
    from evaluation.results import per_subject
    from evaluation.thumbnails import RULE

    for line in notes:
        log.warning("%s", line)
    runs = collect_runs(config.work_dir)
    ssim = None if synthesis is None else per_subject(synthesis, "ssim_mask")
    report = Report(
        title=config.name,
        is_simulated=config.data.simulated,
        facts=page_facts(results, synthesis, runs, config.seed),
        notes=notes,
        tables=tables,
        figures=figures,
        subjects=None if results is None else subject_grid(per_subject(results), config.finetuning.inits),
        galleries=galleries,
        gallery_rule=RULE,
        label_colours={label: label_colour(index) for index, label in enumerate(config.data.labels)},
        runs=runs,
        config_text=yaml.safe_dump(config.plain(), sort_keys=False),
        subtitle=subtitle(results, synthesis),
        synthesis_subjects=None if ssim is None else subject_grid(ssim, config.synthesis.inits),
    )
    write_report(path, report)


def grid_gaps(config, results):
    """Name what the config asks for and the work dir does not hold, and cells that another config made."""
    return gaps_of(config, results, config.finetuning, config.finetuning.contrasts, config.hash_of_cell, "segmentation")


def synthesis_gaps(config, synthesis):
    """The same for synthesis, whose only input set is named by its channels."""
    inputs = "+".join(channel_names(config.data.contrasts, config.synthesis.inputs))
    grid, hash_of = config.synthesis, config.hash_of_synthesis
    return gaps_of(config, synthesis, grid, [inputs], lambda _, init: hash_of(init), "synthesis")


def gaps_of(config, results, grid, contrasts, hash_of, task):
    """Name the gaps of one grid; `hash_of` gives the hash that cells of contrasts and init should have."""
    from evaluation.results import missing_cells, outdated_cells

    splits = config.plain()["data"]["splits"]
    folds = [f"fold{k}" for k in range(splits["folds"])] if isinstance(splits, dict) and "folds" in splits else [""]
    inits = ("random", *(config.pretraining.stages if config.pretraining else ()))
    gaps = missing_cells(results, contrasts, grid.inits, grid.subjects_n, grid.repeats, folds)
    lines = [f"Missing: {gap}; run finetune_{task}.py" for gap in gaps]
    return lines + outdated_cells(results, contrasts, inits, hash_of)


def simulated_note(config):
    return "Simulated scans." if config.data.simulated else ""


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
