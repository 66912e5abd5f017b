"""The figure of a sweep over the number of classes of constraint maps."""

from evaluation.probes.map_tables import NO_MAP, REFERENCES, title_of
from evaluation.report.figures import MARKERS, in_report_style, panels
from evaluation.scores.scores import MEAN
from utils.label_colours import OKABE_ITO

# title of a panel: the measures that share it
PANELS = {
    "True tissue": ("ami_tissue", "homogeneity", "completeness"),
    "Share of the variance of true T1 and T2": ("variance_t1", "variance_t2"),
    "Mutual information with the labels": ("ami_label",),
    "Purity against the labels": ("purity", "purity_gain", "balanced_purity", "organ_purity"),
    "Best Dice of a label and a union of classes": ("best_dice",),
    "Stability over seeds": ("stability",),
}
COLUMNS = 3
INCHES = (3.2, 2.9)


@in_report_style
def agreement_against_clusters(numbers, clusters, note=""):
    """Draw every measure against K: means over subjects and the 95 % confidence intervals of these means.

    Args:
        numbers: From `map_tables.average_agreement`.
        clusters: K of the config, marked by a vertical line.
        note: First words of the title, such as "Simulated scans.".

    Returns:
        A matplotlib `Figure`; panels without a measure are left out.
    """
    present = set(numbers["measure"])
    shown = {title: group for title, group in PANELS.items() if present & set(group)}
    columns = 2 if len(shown) in (2, 4) else min(COLUMNS, len(shown))
    figure, axes = panels(-(-len(shown) // columns), columns, INCHES)
    ticks = sorted(k for k in numbers["clusters"].unique() if k > NO_MAP)
    for axis, (title, group) in zip(axes.flat, shown.items(), strict=False):
        part = numbers[numbers["measure"].isin(group)]
        _draw_lines(axis, part)
        axis.axvline(clusters, color="0.6", linewidth=0.8, zorder=0)
        axis.set_title(title)
        axis.set_xticks(ticks, [str(k) for k in ticks])
        axis.set_xlabel("classes K")
        axis.set_ylabel("0 to 1")
        axis.set_ylim(-0.02, 1.02)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    subjects = f"{numbers['subjects'].max()} subjects, mean and 95 % CI; grey line: K = {clusters} of the config."
    figure.suptitle(f"{note} {subjects}".strip())
    return figure


def _draw_lines(axis, part):
    """Draw the lines of one panel in the order of the measures, followed by the dotted reference lines."""
    lines = sorted(part.groupby(["measure", "label"], sort=False), key=lambda line: line[0][1] in REFERENCES)
    colours = {}
    for number, ((measure, label), line) in enumerate(lines):
        line = line[line["clusters"] > NO_MAP].sort_values("clusters")
        name = label if label and part["measure"].nunique() == 1 else title_of(measure, label)
        colour = colours.setdefault(measure, OKABE_ITO[number % len(OKABE_ITO)])
        if label in REFERENCES:
            axis.plot(line["clusters"], line["mean"], color=colour, linestyle=":", linewidth=1.2, label=name)
            continue
        colour = OKABE_ITO[number % len(OKABE_ITO)]
        style = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 3.5}
        width = 2.4 if label == MEAN else 1.2
        axis.plot(line["clusters"], line["mean"], linewidth=width, label=name, **style)
        axis.fill_between(line["clusters"], line["ci95_low"], line["ci95_high"], color=colour, alpha=0.15, linewidth=0)
