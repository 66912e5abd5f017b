"""What a report shows of segmentation as figures, overlays apart."""

from evaluation.agreement import volumes
from evaluation.agreement_figures import AGREEMENT_SHOWS, VIOLINS_SHOW, bland_altman_plots, dice_violins
from evaluation.comparisons import compare_inits
from evaluation.figures import AGAINST_N_SHOWS, dice_against_n, save_figure
from evaluation.report import ReportFigure
from evaluation.results import MEAN, all_labels, per_subject


def draw_dice(results, inits, note, folder):
    """Draw Dice against N, over labels and by label (a figure for each input set), and violins at the largest N.

    Args:
        results: From `collect_results`.
        inits: Initialisations in the order of the legends.
        note: Beginning of the titles, such as "Simulated scans.".
        folder: Where the figures go.

    Returns:
        List of `ReportFigure`.
    """
    values = per_subject(results)
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
    shows = AGAINST_N_SHOWS.format(subjects="annotated")
    return [
        ReportFigure("Dice against annotated subjects", shows, tuple(pngs)),
        ReportFigure("Dice of the test subjects at the largest N", f"{VIOLINS_SHOW} {family}", (violins,)),
    ]


def draw_agreement(results, inits, note, folder):
    """Draw Bland-Altman plots of the volumes, one per label; an empty list where there are no volumes."""
    both = volumes(results)
    plots = {label: bland_altman_plots(both, label, inits, note) for label in dict.fromkeys(both["label"])}
    pngs = [save_figure(plot, folder, f"bland_altman_{label}") for label, plot in plots.items() if plot]
    return [ReportFigure("Agreement of volumes", AGREEMENT_SHOWS, tuple(pngs))] if pngs else []
