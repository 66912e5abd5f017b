"""The tables of contrast synthesis: SSIM, MSE and PSNR by init, N and target contrast, and paired differences."""

import dataclasses

from evaluation.report.formats import from_to
from evaluation.report.tables import (
    STARS_SAY,
    Table,
    differences_as_table,
    duration_table,
    few_subjects,
    mean_sd,
    score_numbers,
)
from evaluation.scores.comparisons import BASELINE, compare_inits
from evaluation.scores.dead_classes import SELECTING_SAYS, selecting_text
from evaluation.scores.measures import CELL, MASK, MEASURES, REGIONS, measures_in
from evaluation.scores.scores import MEAN
from evaluation.scores.synthesis_metrics import SIGMA

NAMES = {region: "synthesis" + ("" if region == MASK else "_whole_volume") for region in REGIONS}
BETTER = "SSIM and PSNR: higher is better, MSE: lower is better"


def synthesis_tables(scores):
    """Build the tables of scores and paired differences for both regions, and of durations.

    Args:
        scores: A `Scores` of synthesis.

    Returns:
        List of `Table`: inside the mask, over the whole volume (folded on the page), durations; without empty ones.
    """
    tables = []
    for region in REGIONS:
        compared = compare_inits(scores, by_label=True, measures=measures_in(region))
        tables.append(_score_table(scores, region, compared))
        tables.append(_difference_table(scores, region, compared))
    durations = duration_table(scores)
    if durations:
        durations = dataclasses.replace(durations, name="synthesis_durations", title=f"{durations.title} of synthesis")
    return [_in_its_words(table) for table in (*tables, durations) if table]


def _score_table(scores, region, compared):
    """Build the table of means and standard deviations over test subjects, by target contrast and measure."""
    import pandas

    metrics = compared["metric"] if len(compared) else ()
    numbers = pandas.concat(
        score_numbers(scores, measure, compared[metrics == measure.key] if len(compared) else compared)
        .assign(metric=measure.key)
        .query("label != @MEAN", local_dict={"MEAN": MEAN})
        for measure in measures_in(region)
    )
    numbers["infinite"] = [_infinite(scores, row, region) for row in numbers.to_dict("records")]
    numbers["missing"] -= numbers["infinite"]
    rows = []
    for key, cell in numbers.groupby(CELL, sort=False):
        row = dict(zip(("Contrasts", "Init", "N"), map(str, key), strict=True))
        row |= {"Selecting": selecting_text(cell.iloc[0])}
        by_measure = cell.set_index(["label", "metric"])
        for label in scores.labels:
            for measure in measures_in(region):
                one = by_measure.loc[(label, measure.key)]
                row[f"{label}: {measure.title}"] = mean_sd(one, measure.digits) + one["stars"]
        row |= {"Subjects": from_to(cell["subjects"].min(), cell["subjects"].max())}
        row |= {"Repeats": from_to(cell["repeats_min"].min(), cell["repeats"].max())}
        rows.append(row | {"NaN": str(cell["missing"].sum()), "Infinite PSNR": str(cell["infinite"].sum())})
    text = pandas.DataFrame(rows)
    text = text if numbers["infinite"].any() else text.drop(columns="Infinite PSNR")
    title = f"Synthesis: SSIM, MSE and PSNR, {'inside the mask' if region == MASK else region}"
    caption = _score_caption(scores, region, any(numbers["stars"]), numbers["infinite"].any())
    return Table(NAMES[region], title, caption, numbers, text, is_folded=region != MASK)


def _infinite(scores, row, region):
    """Count the infinite scores behind a row of the PSNR: those of syntheses without any error."""
    _, mse, psnr = measures_in(region)
    if row["metric"] != psnr.key:
        return 0
    meant = scores.of(**{key: row[key] for key in (*CELL, "label")})
    return int((meant.frame[mse.key] == 0).sum())


def _score_caption(scores, region, is_starred, has_infinite):
    results = scores.frame
    data_range = from_to(*(f"{value:g}" for value in (results["data_range"].min(), results["data_range"].max())))
    parts = [
        scores.note,
        f"SSIM, MSE and PSNR (mean ± standard deviation over test subjects) of {' and '.join(scores.labels)}, "
        f"synthesised from {' or '.join(dict.fromkeys(results['contrasts']))}, {where(scores, region)}, by "
        "initialisation and number N of finetuning subjects. The repeats of a subject are averaged first.",
        f"Every subject's intensities are scaled by percentiles of its own; the data range is {data_range}, and the "
        f"MSE is in units of its square. SSIM is three-dimensional (Gaussian window, sigma {SIGMA:g} voxels), on the "
        f"subject's own grid. PSNR: that of each subject, averaged in dB. {BETTER}.",
        "Infinite PSNR: syntheses without any error, counted and not averaged." if has_infinite else "",
        f"Stars: differs from {BASELINE} initialisation, up or down ({STARS_SAY})." if is_starred else "",
        SELECTING_SAYS,
        few_subjects(scores),
    ]
    return " ".join(part for part in parts if part)


def where(scores, region):
    """Say which voxels a region covers, and where the mask came from."""
    if region != MASK:
        return "over the whole volume, air included (which is easy to synthesise)"
    origin = {"given": "given with the scans", "found": "found in the images"}
    return (
        f"inside the mask of each subject ({' or '.join(origin[word] for word in sorted(set(scores.frame['mask'])))})"
    )


def _difference_table(scores, region, compared):
    if compared.empty:
        return None
    inside = "inside the mask" if region == MASK else f"over the {region}"
    opening = (
        f"{scores.note} "
        f"Difference in SSIM, MSE and PSNR {inside} to {BASELINE} initialisation (of every target contrast, "
        f"repeats averaged per subject; {BETTER}, so that a negative difference is a gain; PSNR in dB)"
    )
    table = differences_as_table(
        compared,
        f"{NAMES[region]}_differences",
        f"Synthesis: difference to {BASELINE} initialisation, {inside}",
        opening,
        lambda row: (
            {"Contrast": row.label, "Measure": MEASURES[row.metric].title, "Better": MEASURES[row.metric].better},
            MEASURES[row.metric].digits,
        ),
    )
    return dataclasses.replace(table, is_folded=region != MASK)


def _in_its_words(table):
    """Adapt the wording of a segmentation table to synthesis."""
    caption = table.caption.replace("annotated subjects", "finetuning subjects")
    return dataclasses.replace(table, caption=caption, text=table.text.rename(columns={"Contrasts": "Inputs"}))
