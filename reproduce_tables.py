"""Step 5 of 5: from the metrics of all cells to tables, figures and one HTML page.

    python reproduce_tables.py --config configs/lgg_tcga.yaml

Reads   finetuning/<contrasts>/<init>/n<NN>/r<K>/metrics.json and predictions/ (step 4), pretraining/<stage>/history.csv
        (step 3), and the images and labels of the subjects that are drawn; with cross-validation those of all folds.
Writes  report/tables/*.{csv,md,tex}, report/figures/*.{png,pdf} and report/index.html in the work dir.
Takes   seconds. Nothing is trained; every call writes the report anew. Missing cells are named, not hidden.
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

    results = collect_results(config.work_dir)
    folder = config.work_dir / "report"
    for part in ("tables", "figures"):  # written anew, so that nothing outdated stays beside the new
        shutil.rmtree(folder / part, ignore_errors=True)
    with open_run(folder, config.plain(), config.seed):
        tables = make_tables(config, results, folder / "tables")
        figures, notes = make_figures(config, results, folder / "figures")
        write_page(config, results, tables, figures, notes, folder / "index.html")
    print_tables(tables)
    print(f"report: {(folder / 'index.html').resolve()}")


def make_tables(config, results, folder):
    """Write all tables; returns those that a reader should see, Dice first."""
    from evaluation.tables import TITLES, difference_table, score_table, write_table

    note, inits = simulated_note(config), config.finetuning.inits
    known = [metric for metric in TITLES if results[metric].notna().any()]
    tolerance = {"surface_dice": f"{note} Tolerance {config.evaluation.surface_tolerance_mm:g} mm.".strip()}
    tables = [score_table(results, metric, inits, tolerance.get(metric, note)) for metric in known]
    differences = difference_table(results, inits, note)
    if differences:
        tables.insert(1, differences)
    for table in tables:
        write_table(table, folder)
    results.assign(folder=[str(f.relative_to(config.work_dir)) for f in results["folder"]]).to_csv(
        folder / "scores.csv", index=False
    )
    return tables


def make_figures(config, results, folder):
    """Draw all figures; returns them for the page, and notes on those that could not be drawn."""
    from evaluation.figures import all_labels, dice_against_n, save_figure
    from evaluation.report import ReportFigure
    from evaluation.results import MEAN, per_subject

    note, inits = simulated_note(config), config.finetuning.inits
    values = per_subject(results)
    caption = (
        "Small points: single test subjects, repeats averaged. Lines: means over subjects; bars (and bands): 95 % "
        "confidence interval of the mean (t distribution)."
    )
    labels = all_labels(values)
    panels = {"dice_against_n": [MEAN], "dice_by_label": labels} if len(labels) > 1 else {"dice_against_n": labels}
    figures = [
        ReportFigure(title, caption, save_figure(dice_against_n(values, shown, inits, note), folder, name))
        for (name, shown), title in zip(panels.items(), ("Dice against annotated subjects", "By label"), strict=False)
    ]
    overlays, notes = draw_overlay_figures(config, results, folder)
    return figures + overlays + draw_training_curves(config, folder), notes


def draw_overlay_figures(config, results, folder):
    """Overlays at the smallest and the largest N of each input set, and notes on those that are not possible."""
    from data.layouts import find_subjects
    from evaluation.figures import save_figure
    from evaluation.overlays import RULE, draw_overlays, read_pictures
    from evaluation.report import ReportFigure
    from evaluation.results import in_grid_order, per_subject

    data, figures, notes = config.plain()["data"], [], []
    keys = {"contrasts": data["contrasts"], "labels": data["labels"], "ignored": data["ignored_label_values"]}
    for contrasts, at_contrasts in results.groupby("contrasts"):
        shown = config.finetuning.contrasts.get(contrasts, list(data["contrasts"]))[0]
        for n in sorted({at_contrasts["n_annotated"].min(), at_contrasts["n_annotated"].max()}):
            cells = at_contrasts[at_contrasts["n_annotated"] == n]
            inits = in_grid_order(set(cells["init"]), config.finetuning.inits)
            try:
                files = find_subjects(config.data.root, data["contrasts"], data["label"], data["mask"])
                pictures = read_pictures(cells, per_subject(cells), files, inits, shown, **keys)
            except InputError as error:
                notes.append(f"No overlay of {contrasts} at N = {n}: {error.lines[0]}")
                continue
            title = f"{simulated_note(config)} {contrasts} (image: {shown}), N = {n} annotated subjects".strip()
            figure = draw_overlays(pictures, list(data["labels"]), title)
            png = save_figure(figure, folder, f"overlay_{contrasts}_n{n:02d}")
            figures.append(ReportFigure(f"Median and worst test subject, {contrasts}, N = {n}", RULE, png))
    return figures, notes


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
    return [ReportFigure("Pretraining", caption, png)]


def write_page(config, results, tables, figures, notes, path):
    """Write the HTML page."""
    import yaml

    from evaluation.report import collect_runs, subject_grid, write_report
    from evaluation.results import per_subject
    from evaluation.tables import describe_savings

    missing, runs = grid_gaps(config, results), collect_runs(config.work_dir)
    if not config.data.voxel_size_known:
        notes = [*notes, "The voxel size is not known: no distances in mm, no volumes in mL."]
    for line in [*missing, *notes]:
        log.warning("%s", line)
    values, inits = per_subject(results), config.finetuning.inits
    write_report(
        path,
        title=config.name,
        is_simulated=config.data.simulated,
        facts={
            "Test subjects": results["subject"].nunique(),
            "Runs": results["folder"].nunique(),
            "Folds": results["split"].nunique() if results["split"].any() else "none",
            "Dice scores": len(results),
            "of these NaN": int(results["dice"].isna().sum()),
            "Device": ", ".join(runs["devices"]) or "not recorded",
            "Hours in all": f"{runs['hours']:.2f}",
        },
        notes=missing + notes,
        tables=tables,
        savings=describe_savings(results, inits),
        figures=figures,
        subjects=subject_grid(values, inits),
        runs=runs,
        config_text=yaml.safe_dump(config.plain(), sort_keys=False),
    )


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
