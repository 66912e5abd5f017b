"""The numbers stated in a paper, compared with ours."""

import difflib
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from evaluation.report.formats import interval, number
from evaluation.report.tables import Table
from evaluation.scores.measures import CELL, DICE, MEASURES, REGIONS, SYNTHESIS_MEASURES
from evaluation.scores.scores import MEAN, mean_interval
from evaluation.statistics import annotation_saved
from utils.checks import InputError
from utils.config.load import read_yaml
from utils.config.sections import Section

EXPECTED = Path(__file__).resolve().parent.parent.parent / "papers" / "expected.yaml"
SHARES = ("shortfall", "annotation_used", "annotation_saved")
OF_SYNTHESIS = {measure.name.lower(): measure.digits for measure in SYNTHESIS_MEASURES}  # quantity: decimal places
MEANS_OF_SEGMENTATION = (
    "labels and repeats with the 95 % CI of the mean over subjects; shortfall: 1 - Dice / Dice of the baseline; "
    "annotation: tested N."
)
MEANS_OF_SYNTHESIS = (
    "repeats averaged first, with the 95 % CI of the mean over subjects, inside the mask and over the whole volume, "
    "with intensities scaled so that the data range is 1."
)


class Ours(Section):
    """Where to find our value of a number; the quantities are explained at the top of papers/expected.yaml."""

    quantity: str
    init: str
    n: int | None = None
    label: str = MEAN
    reference: str | None = None
    reference_n: int | None = None


class Stated(Section):
    """One number of a source."""

    what: str
    place: str
    quotation: str
    value: float
    at_most: bool = False
    note: str = ""
    ours: Ours | None = None


class Entry(Section):
    """One source, or the part of it that a preset reproduces."""

    citation: str
    file: str
    note: str = ""
    numbers: list[Stated]

    def is_about_synthesis(self):
        """Whether any number is a measure of synthesised contrasts."""
        return any(stated.ours.quantity in OF_SYNTHESIS for stated in self.numbers if stated.ours)


def read_expected(name, path=EXPECTED):
    """Read the numbers stated in a paper.

    Args:
        name: Entry of the file, as given by `paper:` in a config.
        path: The YAML file.

    Returns:
        An `Entry`; its `numbers` are empty if the source states no result.

    Raises:
        InputError: If there is no such entry, or the file does not match the description at its top.
    """
    try:
        entries = TypeAdapter(dict[str, Entry]).validate_python(read_yaml(path))
    except ValidationError as error:
        raise InputError(
            [f"{path}: {'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors()]
        ) from None
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(entries)}"
        raise InputError(f"paper: {path} has no entry '{name}'; {hint}")
    return entries[name]


def expected_table(scores, entry):
    """Build the table of the paper's numbers, ours, and the differences.

    Args:
        scores: A `Scores`.
        entry: From `read_expected`.

    Returns:
        A `Table` with one row per number of the paper and contrasts of the results; for synthesis, one for each region
        of `measures.REGIONS`. `ours` is missing where the results have no such cell. None if the source states no
        number.
    """
    import pandas

    rows = [
        {"what": stated.what, "contrasts": contrasts, "region": region, "paper": stated.value}
        | {"at_most": stated.at_most}
        | _ours(of_contrasts, stated.ours, region)
        | {"place": stated.place, "quotation": stated.quotation, "note": stated.note}
        for stated in entry.numbers
        for contrasts, of_contrasts in sorted(scores.by_contrasts().items())
        for region in _regions(stated.ours)
    ]
    if not rows:
        return None
    numbers = pandas.DataFrame(rows).astype(dict.fromkeys(("ours", "ours_low", "ours_high"), float))
    numbers.insert(numbers.columns.get_loc("ours") + 1, "difference", numbers["ours"] - numbers["paper"])
    numbers = numbers if any(numbers["region"]) else numbers.drop(columns="region")
    means = MEANS_OF_SYNTHESIS if entry.is_about_synthesis() else MEANS_OF_SEGMENTATION
    caption = (
        f"{scores.note} Results that {entry.citation} states for its own subjects, and ours; difference: ours - paper. "
        f"Ours: mean over test subjects, {means} -: these results hold no such cell. Place: where the paper states "
        f"it; the quotations are in the CSV file. {entry.note}"
    ).strip()
    # In the caption, not in a column, because captions wrap in every format.
    caption += "".join(f" {stated.what}: {stated.note}." for stated in entry.numbers if stated.note)
    text = pandas.DataFrame([_expected_text(row) for row in numbers.itertuples()])
    return Table("paper", "The paper's numbers and ours", caption, numbers, text)


def _regions(ours):
    """Return the regions in which our value of a number is looked up; "" if it has none."""
    return REGIONS if ours and ours.quantity in OF_SYNTHESIS else ("",)


def _ours(scores, ours, region):
    """Return our value of one number from the results of one input set: a share, or a mean with its interval."""
    found = {"quantity": ours.quantity if ours else "", "ours": None, "ours_low": None, "ours_high": None, "status": ""}
    if ours is None:
        return found | {"status": "not compared"}
    measure = DICE if ours.quantity in SHARES else _measure_of(ours.quantity, region)
    if measure is None or measure.key not in scores.frame:
        return found | {"status": "no such metric"}
    values = scores.per_subject(measure)
    values = values[values["label"] == ours.label]
    of_cells = {key[1:]: cell["value"] for key, cell in values.groupby(CELL) if cell["value"].notna().any()}
    means = {key: value.mean() for key, value in of_cells.items()}
    curves = {init: {n: mean for (one, n), mean in means.items() if one == init} for init, _ in means}
    own, reference = curves.get(ours.init, {}), curves.get(ours.reference, {})
    needed = [(own, ours.n)] if ours.n is not None else []
    needed += [(reference, ours.reference_n)] if ours.reference else []
    if not own or any(n not in curve for curve, n in needed):
        return found | {"status": "no such cell"}
    if ours.quantity == "shortfall":
        return found | {"ours": 1 - own[ours.n] / reference[ours.reference_n]}
    if ours.quantity in SHARES:
        saved = annotation_saved(own, reference, ours.reference_n, interpolate=False)
        if saved is None:
            return found | {"status": "not reached"}
        return found | {"ours": saved if ours.quantity == "annotation_saved" else 1 - saved}
    mean, _, low, high = mean_interval(of_cells[ours.init, ours.n])
    return found | {"ours": mean, "ours_low": low, "ours_high": high}


def _measure_of(quantity, region):
    """Return the measure of a quantity, for synthesis in a region; None for a quantity that is not a measure."""
    inside = (measure for measure in SYNTHESIS_MEASURES if measure.region == region)
    return MEASURES.get(quantity) if not region else next(one for one in inside if one.name.lower() == quantity)


def _expected_text(row):
    is_share = row.quantity in SHARES
    paper = f"{100 * row.paper:g}%" if is_share else f"{row.paper:g}"
    digits = OF_SYNTHESIS.get(row.quantity, DICE.digits)
    difference = f"{100 * row.difference:+.1f} points" if is_share else f"{row.difference:+.{digits}f}"
    ours, is_found = number(row.ours, ".1%" if is_share else f".{digits}f"), row.ours == row.ours  # not NaN
    return {
        "Number": row.what,
        ("Inputs" if hasattr(row, "region") else "Contrasts"): row.contrasts,
        **({"Ours is of": row.region} if hasattr(row, "region") else {}),
        "Paper": ("≤ " if row.at_most else "") + paper,
        "Ours": "not reached" if row.status == "not reached" else ours,
        "95 % CI": interval(row.ours_low, row.ours_high, f".{digits}f"),
        "Difference": difference if is_found else "-",
        "Place": row.place,
    }
