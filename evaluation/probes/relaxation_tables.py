"""The table of `relaxation.py`: means over seeds of k-means, subject by subject."""

from evaluation.probes.relaxation import ALL, CEILING, FIT, HIDDEN, MAP, POSITION, SHIFTED
from evaluation.report.tables import Table

BEST, WORST = "best single image", "worst single image"
COMMON = (MAP, FIT, SHIFTED, POSITION, CEILING)  # anything else is the name of an image
ORDER = (MAP, FIT, BEST, WORST, SHIFTED, POSITION, CEILING)
SAYS = (
    "Share of the variance of ln T between classes, and in italics adjusted mutual information with K classes of the "
    "reference: means over {seeds} seeds of k-means; shares of constraint maps differ by at most {widest:.3f} between "
    "seeds. Columns: number of images. All images: the reference is the fitted map. Hidden images: the reference is a "
    "fit to the images that the map was not made from. Best and worst single image: chosen by the result, against all "
    "images. Shifted map: the same map at a wrong position. Position: k-means on the position in mm. Fitted map: its "
    "own K classes, the most that K classes can reach. Stability: adjusted Rand index between seeds."
)


def summarised(rows):
    """Average over seeds.

    Args:
        rows: DataFrame with `subject` and the columns of `relaxation.COLUMNS`.

    Returns:
        DataFrame with `subject`, `made_from`, `reference`, `measure`, `images`, `image` (name of a single one, or ""),
        `mean`, `lowest`, `highest`, `seeds`. Of the single images, those with the largest and the smallest share of the
        variance (of the fitted map) are kept.
    """
    import pandas

    keys = ["subject", "made_from", "reference", "measure", "images"]
    grouped = rows.groupby(keys, sort=False, dropna=False)["value"]
    numbers = grouped.agg(mean="mean", lowest="min", highest="max", seeds="count").reset_index()
    is_single = ~numbers["made_from"].isin(COMMON)
    numbers.insert(5, "image", numbers["made_from"].where(is_single, ""))
    found = [numbers[~is_single]]
    for _, of_subject in numbers[is_single].groupby("subject", sort=False):
        judged = of_subject[(of_subject["measure"] == "variance") & (of_subject["reference"] == ALL)]
        shares = judged.set_index("image")["mean"]
        for name, image in {BEST: shares.idxmax(), WORST: shares.idxmin()}.items():
            found.append(of_subject[of_subject["image"] == image].assign(made_from=name))
    return pandas.concat(found, ignore_index=True)


def relaxometry_table(rows, note=""):
    """Build the table: what classes are made from in rows, the number of images in columns.

    Args:
        rows: As for `summarised`.
        note: First words of the caption.

    Returns:
        A `Table`.
    """
    import pandas

    numbers, text = summarised(rows), []
    columns = sorted(numbers["images"].unique())
    for subject, of_subject in numbers.groupby("subject", sort=False):
        for made_from in ORDER:
            for reference in (ALL, HIDDEN):
                part = of_subject[(of_subject["made_from"] == made_from) & (of_subject["reference"] == reference)]
                if len(part):
                    text.append({"subject": subject, "classes of": f"{made_from}; {reference}"} | _cells(part, columns))
        stable = of_subject[of_subject["measure"] == "stability"].set_index("images")["mean"]
        cells = {str(n): f"{stable[n]:.2f}" if n in stable.index else "" for n in columns}
        text.append({"subject": subject, "classes of": "constraint map; stability"} | cells)
    maps = numbers[(numbers["made_from"] == MAP) & (numbers["measure"] == "variance")]
    widest = float((maps["highest"] - maps["lowest"]).max())
    caption = f"{note} {SAYS.format(seeds=maps['seeds'].max(), widest=widest)}".strip()
    return Table("agreement", "Agreement with the relaxation time", caption, numbers, pandas.DataFrame(text))


def _cells(part, columns):
    """Return `{number of images: "variance *AMI*"}` of one row."""
    found = {}
    for number in columns:
        cell = part[part["images"] == number].set_index("measure")
        found[str(number)] = ""
        if len(cell):
            image = f" {cell['image']['variance']}" if cell["image"]["variance"] else ""
            found[str(number)] = f"{cell['mean']['variance']:.2f} *{cell['mean']['ami']:.2f}*{image}"
    return found
