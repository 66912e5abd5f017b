"""Figures of contrast synthesis in a report, and notes on those that cannot be drawn."""

from evaluation.pictures.error_maps import RULE, draw_error_maps, largest_error, read_error_maps
from evaluation.report.figures import AGAINST_N_SHOWS, against_n, save_figure
from evaluation.report.page import ReportFigure
from evaluation.report.synthesis_tables import where
from evaluation.scores.measures import MASK, REGIONS, measures_in
from utils.checks import InputError


def draw_scores_against_n(scores, folder):
    """Draw SSIM, MSE and PSNR inside the mask against N, a panel for each target contrast.

    Args:
        scores: A `Scores` of synthesis.
        folder: Folder that the figures are written to.

    Returns:
        List of `ReportFigure`: SSIM, which the page shows first, and the others.
    """
    pngs, measures = [], measures_in(MASK)
    for measure in measures:
        name = measure.key.removesuffix(REGIONS[MASK])
        pngs.append(save_figure(against_n(scores, measure), folder, f"{name}_against_n"))
    better = ", ".join(f"{measure.title}: {measure.better} is better" for measure in measures)
    caption = f"{where(scores, MASK)}; data range 1. {better}. {AGAINST_N_SHOWS.format(subjects='training')}"
    caption = caption[0].upper() + caption[1:]
    return [
        ReportFigure("SSIM against finetuning subjects", caption, (pngs[0],), is_first=True),
        ReportFigure("Synthesis against finetuning subjects", caption, tuple(pngs[1:])),
    ]


def draw_error_figures(scores, find_files, folder, wanted):
    """Draw error maps at the smallest and the largest N of each input set.

    Args:
        scores: A `Scores` of synthesis.
        find_files: Function without arguments that returns a mapping from subject to `SubjectFiles`.
        folder: Folder that the figures are written to.
        wanted: As for `error_maps.read_error_maps`.

    Returns:
        `(figures, notes)`: a list of at most one `ReportFigure`, and a sentence on each figure that cannot be drawn.
    """
    pictures, notes = {}, []
    for inputs, of_inputs in scores.by_contrasts().items():
        for n in of_inputs.smallest_and_largest_n:
            try:
                found = read_error_maps(of_inputs.of(n_annotated=n), find_files(), wanted)
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
            found, f"{scores.note} Synthesised from {inputs}, N = {n} finetuning subjects".strip(), highest
        )
        sets = f"_{inputs}" if scores.frame["contrasts"].nunique() > 1 else ""
        pngs.append(save_figure(figure, folder, f"error_maps{sets}_n{n:02d}"))
    return [ReportFigure("Error maps of the median and the worst test subject", RULE, tuple(pngs))], notes
