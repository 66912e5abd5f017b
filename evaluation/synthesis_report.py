"""What a report says on contrast synthesis: its tables, its figures, and notes on what could not be drawn."""

from evaluation.error_maps import RULE, draw_error_maps, largest_error, read_error_maps
from evaluation.figures import AGAINST_N_SHOWS, dice_against_n, save_figure
from evaluation.measures import MASK, SYNTHESIS_MEASURES
from evaluation.report import ReportFigure
from evaluation.results import in_grid_order, per_subject
from evaluation.synthesis_tables import where
from utils.checks import InputError


def draw_scores_against_n(results, inits, note, folder):
    """Draw SSIM, MSE and PSNR inside the mask against N, a panel for each target contrast.

    Args:
        results: From `collect_results`, of synthesis.
        inits: Initialisations in the order of the legends.
        note: Beginning of the titles, such as "Simulated scans.".
        folder: Where the figures go.

    Returns:
        List of one `ReportFigure`.
    """
    pngs, available = [], results["annotated_available"].min()
    for measure in SYNTHESIS_MEASURES:
        values = per_subject(results, measure.column(MASK))
        figure = dice_against_n(values, inits=inits, note=note, all_subjects=available, measure=measure)
        pngs.append(save_figure(figure, folder, f"{measure.name}_against_n"))
    better = ", ".join(f"{measure.title}: {measure.better} is better" for measure in SYNTHESIS_MEASURES)
    caption = f"{where(results, MASK)}; data range 1. {better}. {AGAINST_N_SHOWS.format(subjects='training')}"
    return [ReportFigure("Synthesis against finetuning subjects", caption[0].upper() + caption[1:], tuple(pngs))]


def draw_error_figures(results, find_files, inits, note, folder, **keys):
    """Draw error maps at the smallest and the largest N of each input set.

    Args:
        results: From `collect_results`, of synthesis.
        find_files: Function without arguments that returns a mapping of subject to `SubjectFiles`.
        inits: Initialisations in the order of the columns.
        note: Beginning of the titles.
        folder: Where the figures go.
        **keys: `contrasts`, `labels` and `ignored` as for `error_maps.read_error_maps`.

    Returns:
        `(figures, notes)`: a list of at most one `ReportFigure`, and a sentence on each figure that is not possible.
    """
    pictures, notes = {}, []
    for inputs, of_inputs in results.groupby("contrasts", sort=False):
        for n in sorted({of_inputs["n_annotated"].min(), of_inputs["n_annotated"].max()}):
            cells = of_inputs[of_inputs["n_annotated"] == n]
            present, values = in_grid_order(set(cells["init"]), inits), per_subject(cells, "ssim_mask")
            try:
                found = read_error_maps(cells, values, find_files(), present, **keys)
            except InputError as error:
                notes.append(f"No error maps at N = {n}: {error.lines[0]}")
                continue
            if found:
                pictures[inputs, n] = found
            else:
                notes.append(f"No error maps at N = {n}: no test subject has an SSIM inside the mask.")
    if not pictures:
        return [], notes
    highest, pngs = largest_error([one for found in pictures.values() for one in found]), []
    for (inputs, n), found in pictures.items():
        figure = draw_error_maps(
            found, f"{note} Synthesised from {inputs}, N = {n} finetuning subjects".strip(), highest
        )
        sets = f"_{inputs}" if results["contrasts"].nunique() > 1 else ""
        pngs.append(save_figure(figure, folder, f"error_maps{sets}_n{n:02d}"))
    return [ReportFigure("Error maps of the median and the worst test subject", RULE, tuple(pngs))], notes
