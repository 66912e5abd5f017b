"""Figures and pictures of segmentation in a report."""

from evaluation.pictures.overlays import RULE, draw_overlays, read_pictures
from evaluation.pictures.thumbnails import BUDGET_BYTES, draw_thumbnails
from evaluation.report.agreement_figures import AGREEMENT_SHOWS, VIOLINS_SHOW, bland_altman_plots, dice_violins
from evaluation.report.figures import AGAINST_N_SHOWS, against_n, save_figure
from evaluation.report.page import Gallery, ReportFigure
from evaluation.scores.agreement import volumes
from evaluation.scores.comparisons import compare_inits
from evaluation.scores.measures import FALSE_LESIONS, LESION_F1
from evaluation.scores.scores import MEAN
from utils.checks import InputError


def draw_dice(scores, folder):
    """Draw Dice against N, over labels and by label (a figure for each input set), and violins at the largest N.

    Args:
        scores: A `Scores` of segmentation.
        folder: Folder that the figures are written to.

    Returns:
        List of `ReportFigure`.
    """
    several = len(scores.labels) > 1
    shows = AGAINST_N_SHOWS.format(subjects="annotated")
    over_labels = save_figure(against_n(scores, labels=[MEAN] if several else ()), folder, "dice_against_n")
    figures = [ReportFigure("Dice against annotated subjects", shows, (over_labels,), is_first=True)]
    by_contrasts, pngs = scores.by_contrasts() if several else {}, []
    for contrasts, part in by_contrasts.items():
        name = "dice_by_label" + (f"_{contrasts}" if len(by_contrasts) > 1 else "")
        pngs.append(save_figure(against_n(part), folder, name))
    if pngs:
        figures.append(ReportFigure("Dice of every label against annotated subjects", shows, tuple(pngs)))
    differences = compare_inits(scores, by_label=True)
    violins = save_figure(dice_violins(scores, differences), folder, "dice_violins")
    family = f"Bonferroni over the {len(differences)} comparisons of all contrasts, initialisations, N and labels."
    at_largest = ReportFigure("Dice of the test subjects at the largest N", f"{VIOLINS_SHOW} {family}", (violins,))
    return [*figures, at_largest]


def draw_lesions(scores, folder):
    """Draw lesion F1 and false positives against N, a figure each; returns an empty list if no label is lesions."""
    figures, shows = [], AGAINST_N_SHOWS.format(subjects="annotated")
    for measure in (one for one in (LESION_F1, FALSE_LESIONS) if one in scores.measures):
        has_lesions = scores.frame[measure.counted_with].notna()
        labels = list(dict.fromkeys(scores.frame["label"][has_lesions]))
        png = save_figure(against_n(scores, measure, labels), folder, f"{measure.key}_against_n")
        figures.append(ReportFigure(f"{measure.name} against annotated subjects", shows, (png,)))
    return figures


def draw_agreement(scores, folder):
    """Draw Bland-Altman plots of the volumes, one per label; returns an empty list if there are no volumes."""
    both = volumes(scores)
    plots = {label: bland_altman_plots(scores, both, label) for label in scores.labels}
    pngs = [save_figure(plot, folder, f"bland_altman_{label}") for label, plot in plots.items() if plot]
    return [ReportFigure("Agreement of volumes", AGREEMENT_SHOWS, tuple(pngs))] if pngs else []


def draw_overlay_figures(scores, scans_of, legend, folder):
    """Draw overlays at the smallest and the largest N of each input set.

    Args:
        scores: A `Scores` of segmentation.
        scans_of: Function of an input set that returns files by subject, the contrast to show and their `Wanted`.
        legend: A `Label` for each class.
        folder: Folder that the figures are written to.

    Returns:
        `(figures, notes)`: a list of at most one `ReportFigure`, and a sentence on each figure that cannot be drawn.
    """
    pngs, notes = [], []
    for contrasts, at_contrasts in scores.by_contrasts().items():
        for n in at_contrasts.smallest_and_largest_n:
            try:
                files, shown, wanted = scans_of(contrasts)
                pictures = read_pictures(at_contrasts.of(n_annotated=n), files, shown, wanted)
            except InputError as error:
                notes.append(f"No overlay of {contrasts} at N = {n}: {error.lines[0]}")
                continue
            title = f"{scores.note} {contrasts} (image: {shown}), N = {n} annotated subjects".strip()
            figure = draw_overlays(pictures, legend, title)
            pngs.append(save_figure(figure, folder, f"overlay_{contrasts}_n{n:02d}"))
    return [ReportFigure("Median and worst test subject", RULE, tuple(pngs))] if pngs else [], notes


def draw_galleries(scores, scans_of, legend):
    """Draw small pictures of all test subjects at the largest limited N of each input set.

    Args as for `draw_overlay_figures`.

    Returns:
        `(galleries, notes)`: a list of `Gallery`, and a sentence on each picture that cannot be drawn.
    """
    galleries, notes = [], []
    budget = BUDGET_BYTES // scores.frame["contrasts"].nunique()
    for contrasts, of_contrasts in scores.by_contrasts().items():
        numbers = of_contrasts.frame["n_annotated"]
        limited = numbers[~(numbers >= of_contrasts.available)]
        n = (limited if len(limited) else numbers).max()
        try:
            files, shown, wanted = scans_of(contrasts)
        except InputError as error:
            notes.append(f"No pictures of the test subjects of {contrasts}: {error.lines[0]}")
            continue
        subjects, skipped = draw_thumbnails(of_contrasts.of(n_annotated=n), files, shown, wanted, legend, budget)
        galleries.append(Gallery(f"{contrasts} (image: {shown}), N = {n} annotated subjects", subjects))
        notes += [f"{contrasts}, N = {n}: {line}" for line in skipped]
    return galleries, notes
