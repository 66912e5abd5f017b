"""Step 5 of 5: from the metrics of all cells to tables, figures and one HTML page.

    python reproduce_tables.py --config configs/lgg_tcga.yaml

Reads   finetuning/<contrasts>/<init>/n<NN>/r<K>/metrics.json and predictions/ (step 4), pretraining/<stage>/history.csv
        (step 3), the images and labels of the test subjects, with cross-validation those of all folds; and, where the
        config names a paper, its numbers in papers/expected.yaml.
Writes  report/tables/*.{csv,md,tex}, report/figures/*.{png,pdf} and report/index.html in the work dir.
Takes   seconds to a minute. Nothing is trained; every call writes the report anew. Missing cells are named, not hidden.
Next    open report/index.html in a browser, or: python predict.py --help
"""

import logging
import shutil

from utils.checks import InputError
from utils.config import from_command_line
from utils.runs import exit_code_of, open_run

log = logging.getLogger("mrccl")


def main(arguments=None):
    config, _ = from_command_line(__doc__, arguments, needs=("finetuning",))
    # Deferred so that --help and config mistakes answer before pandas and matplotlib are loaded.
    from evaluation.results import collect_results

    results = in_config_order(config, collect_results(config.work_dir))
    folder = config.work_dir / "report"
    for part in ("tables", "figures"):  # written anew, so that nothing outdated stays beside the new
        shutil.rmtree(folder / part, ignore_errors=True)
    with open_run(folder, config.plain(), config.seed):
        tables = make_tables(config, results, folder / "tables")
        figures, figure_notes = make_figures(config, results, folder / "figures")
        galleries, gallery_notes = make_galleries(config, results)
        notes = grid_gaps(config, results) + figure_notes + gallery_notes
        write_page(config, results, tables, figures, galleries, notes, folder / "index.html")
    print_tables(tables)
    print(f"report: {(folder / 'index.html').resolve()}")


def in_config_order(config, results):
    """Sort the rows by contrasts as the config lists them, so that figures show them in that order."""
    order = {name: place for place, name in enumerate(config.finetuning.contrasts)}
    return results.sort_values("contrasts", key=lambda names: names.map(order), kind="stable", ignore_index=True)


def make_tables(config, results, folder):
    """Write all tables; returns those that a reader should see, the paper's numbers and the Dice first."""
    from evaluation.agreement import bland_altman_table
    from evaluation.expected import expected_table, read_expected
    from evaluation.savings import savings_table
    from evaluation.tables import TITLES, difference_table, duration_table, score_table, write_table

    note, inits = simulated_note(config), config.finetuning.inits
    known = [metric for metric in TITLES if results[metric].notna().any()]
    tolerance = {"surface_dice": f"{note} Tolerance {config.evaluation.surface_tolerance_mm:g} mm.".strip()}
    paper = expected_table(results, read_expected(config.paper), note) if config.paper else None
    dice, *others = [score_table(results, metric, inits, tolerance.get(metric, note)) for metric in known]
    tables = [
        paper,
        dice,
        difference_table(results, inits, note),
        savings_table(results, inits, note),
        difference_table(results, inits, note, by_label=True),
        *others,
        bland_altman_table(results, inits, note),
        duration_table(results, inits, note),
    ]
    tables = [table for table in tables if table]
    for table in tables:
        write_table(table, folder)
    results.assign(folder=[str(f.relative_to(config.work_dir)) for f in results["folder"]]).to_csv(
        folder / "scores.csv", index=False
    )
    return tables


def make_figures(config, results, folder):
    """Draw all figures; returns them for the page, and notes on those that could not be drawn."""
    overlays, notes = draw_overlay_figures(config, results, folder)
    figures = [
        *draw_dice_figures(config, results, folder),
        *draw_agreement_figures(config, results, folder),
        *overlays,
        *draw_training_curves(config, folder),
    ]
    if not config.data.voxel_size_known:
        notes = [*notes, "The voxel size is not known: no distances in mm, no volumes in mL, no Bland-Altman plots."]
    return figures, notes


def draw_dice_figures(config, results, folder):
    """Dice against N, over labels and by label (a figure for each input set), and violins at the largest N."""
    from evaluation.agreement_figures import VIOLINS_SHOW, dice_violins
    from evaluation.comparisons import compare_inits
    from evaluation.figures import DICE_SHOWS, all_labels, dice_against_n, save_figure
    from evaluation.report import ReportFigure
    from evaluation.results import MEAN, per_subject

    note, inits, values = simulated_note(config), config.finetuning.inits, per_subject(results)
    labels, available = all_labels(values), results["annotated_available"].min()
    over_labels = dice_against_n(values, [MEAN] if len(labels) > 1 else labels, inits, note, available)
    pngs = [save_figure(over_labels, folder, "dice_against_n")]
    if len(labels) > 1:
        by_contrasts = dict(list(values.groupby("contrasts", sort=False)))
        for contrasts, part in by_contrasts.items():
            name = "dice_by_label" + (f"_{contrasts}" if len(by_contrasts) > 1 else "")
            pngs.append(save_figure(dice_against_n(part, labels, inits, note, available), folder, name))
    differences = compare_inits(results, inits, by_label=True)
    violins = save_figure(dice_violins(values, labels, inits, differences, note), folder, "dice_violins")
    family = f"Bonferroni over the {len(differences)} comparisons of all contrasts, initialisations, N and labels."
    return [
        ReportFigure("Dice against annotated subjects", DICE_SHOWS, tuple(pngs)),
        ReportFigure("Dice of the test subjects at the largest N", f"{VIOLINS_SHOW} {family}", (violins,)),
    ]


def draw_agreement_figures(config, results, folder):
    """Bland-Altman plots of the volumes, one per label; none where there are no volumes."""
    from evaluation.agreement import volumes
    from evaluation.agreement_figures import AGREEMENT_SHOWS, bland_altman_plots
    from evaluation.figures import save_figure
    from evaluation.report import ReportFigure

    both, note, inits = volumes(results), simulated_note(config), config.finetuning.inits
    plots = {label: bland_altman_plots(both, label, inits, note) for label in dict.fromkeys(both["label"])}
    pngs = [save_figure(plot, folder, f"bland_altman_{label}") for label, plot in plots.items() if plot]
    return [ReportFigure("Agreement of volumes", AGREEMENT_SHOWS, tuple(pngs))] if pngs else []


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
    from data.layouts import find_subjects

    data = config.plain()["data"]
    shown = config.finetuning.contrasts.get(contrasts, list(data["contrasts"]))[0]
    keys = {"contrasts": data["contrasts"], "labels": data["labels"], "ignored": data["ignored_label_values"]}
    return find_subjects(config.data.root, data["contrasts"], data["label"], data["mask"]), shown, keys


def draw_training_curves(config, folder):
    """Curves of the pretraining stages that have run, all folds in one panel."""
    import pandas

    from evaluation.figures import save_figure, training_curves
    from evaluation.report import ReportFigure

    histories = {}
    for stage in config.pretraining.stages if config.pretraining else ():
        files = [*config.work_dir.glob(f"pretraining/{stage}/history.csv")]
        files += sorted(config.work_dir.glob(f"fold*/pretraining/{stage}/history.csv"))
        folds = {file.relative_to(config.work_dir).parts[0].replace("pretraining", ""): file for file in files}
        if folds:
            histories[f"stage '{stage}'"] = {fold: pandas.read_csv(file) for fold, file in folds.items()}
    if not histories:
        return []
    png = save_figure(training_curves(histories, simulated_note(config)), folder, "pretraining_curves")
    caption = (
        "Loss on training slices and on the fixed validation slices. Below, where a stage contrasts, the health of its "
        "representations on the validation slices: spread (0: collapsed), anchors without positive or negative, "
        "alignment and uniformity."
    )
    return [ReportFigure("Pretraining", caption, (png,))]


def write_page(config, results, tables, figures, galleries, notes, path):
    """Write the HTML page."""
    import yaml

    from evaluation.overlays import label_colour
    from evaluation.report import Report, collect_runs, subject_grid, write_report
    from evaluation.results import per_subject
    from evaluation.thumbnails import RULE

    for line in notes:
        log.warning("%s", line)
    runs = collect_runs(config.work_dir)
    facts = {
        "Test subjects": results["subject"].nunique(),
        "Runs": results["folder"].nunique(),
        "Folds": results["split"].nunique() if results["split"].any() else "none",
        "Dice scores": f"{len(results)}, {results['dice'].isna().sum()} NaN",
        "Seed": ", ".join(map(str, runs["seeds"])) or config.seed,
        "Software": "; ".join(runs["software"]) or "not recorded",
        "Device": ", ".join(runs["devices"]) or "not recorded",
        "Hours in all": f"{runs['hours']:.2f}",
    }
    report = Report(
        title=config.name,
        is_simulated=config.data.simulated,
        facts=facts,
        notes=notes,
        tables=tables,
        figures=figures,
        subjects=subject_grid(per_subject(results), config.finetuning.inits),
        galleries=galleries,
        gallery_rule=RULE,
        label_colours={label: label_colour(index) for index, label in enumerate(config.data.labels)},
        runs=runs,
        config_text=yaml.safe_dump(config.plain(), sort_keys=False),
    )
    write_report(path, report)


def grid_gaps(config, results):
    """Name what the config asks for and the work dir does not hold, and cells that another config made."""
    from evaluation.results import CELL, missing_cells

    grid, splits = config.finetuning, config.plain()["data"]["splits"]
    folds = [f"fold{k}" for k in range(splits["folds"])] if isinstance(splits, dict) and "folds" in splits else [""]
    stages = config.pretraining.stages if config.pretraining else ()
    gaps = missing_cells(results, grid.contrasts, grid.inits, grid.subjects_n, grid.repeats, folds)
    lines = [f"Missing: {gap}; run finetune_segmentation.py" for gap in gaps]
    for (contrasts, init, n), cell in results.groupby(CELL):
        is_known = contrasts in grid.contrasts and init in ("random", *stages)
        if not is_known or cell["config_hash"].iloc[0] != config.hash_of_cell(contrasts, init):
            lines.append(f"{contrasts}/{init}/n{n:02d} was made with another config than this one.")
    return lines


def simulated_note(config):
    return "Simulated scans." if config.data.simulated else ""


def print_tables(tables):
    """Print the Dice table and the paired differences."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    # Into a file or a pipe nothing limits the width, and a cut table would be useless.
    console = console if console.is_terminal else Console(width=200)
    for table in tables:
        if table.name in ("dice", "dice_differences"):
            rendered = Table(
                *table.text.columns,
                title=table.title,
                caption=table.caption,
                title_justify="left",
                caption_justify="left",
            )
            for row in table.text.to_numpy().tolist():
                rendered.add_row(*row)
            console.print(rendered)


if __name__ == "__main__":
    raise SystemExit(exit_code_of(main))
