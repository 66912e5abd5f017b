"""Agreement of segmented and reference volumes: the numbers of a Bland-Altman plot."""

import dataclasses

from evaluation.report.formats import interval, number
from evaluation.report.tables import Table
from evaluation.scores.measures import CELL, REFERENCE_VOLUME, VOLUME
from evaluation.scores.scores import MEAN
from evaluation.statistics import bland_altman


def volumes(scores):
    """Return the volume of every test subject and label, segmented (mean over repeats) and reference.

    Args:
        scores: A `Scores`.

    Returns:
        DataFrame: `contrasts`, `init`, `n_annotated`, `subject`, `label`, `measured` and `reference` in mL; NaN if the
        voxel size is unknown.
    """
    keys = [*CELL, "subject", "label"]
    measured, reference = (
        scores.per_subject(measure).set_index(keys)["value"] for measure in (VOLUME, REFERENCE_VOLUME)
    )
    both = measured.rename("measured").to_frame().join(reference.rename("reference")).reset_index()
    return both[both["label"] != MEAN]


def bland_altman_table(scores):
    """Build the table of bias and limits of agreement of the volumes of a `Scores`, by contrasts, init, N and label.

    Returns:
        A `Table`, or None if there are no volumes (unknown voxel size).
    """
    import pandas

    both = volumes(scores)
    if both[["measured", "reference"]].isna().any(axis=1).all():
        return None
    rows = []
    for key in scores.cells:
        cell = both[(both[CELL] == key).all(axis=1)]
        for label in scores.labels:
            part = cell[cell["label"] == label]
            agreement = bland_altman(part["measured"], part["reference"])
            rows.append(dict(zip(CELL, key, strict=True)) | {"label": label} | dataclasses.asdict(agreement))
    numbers = pandas.DataFrame(rows)
    caption = (
        f"{scores.note} "
        f"Agreement of volumes [mL], segmented minus reference, across test subjects: bias and 95 % limits of "
        "agreement (bias ± 1.96 standard deviations of the differences), with 95 % CIs (Bland and Altman 1999). "
        "The segmented volume of a subject is the mean over its repeats; the volumes of single networks vary more. A "
        "label that was not segmented counts as 0 mL."
    ).strip()
    text = pandas.DataFrame([_agreement_text(row) for row in numbers.itertuples()])
    return Table("bland_altman", "Agreement of volumes (Bland-Altman)", caption, numbers, text)


def _agreement_text(row):
    return {
        "Contrasts": row.contrasts,
        "Init": row.init,
        "N": str(row.n_annotated),
        "Label": row.label,
        "Subjects": str(row.pairs),
        "Bias": number(row.bias, "+.1f"),
        "Bias, 95 % CI": interval(row.bias_low, row.bias_high, "+.1f"),
        "SD": number(row.sd, ".1f"),
        "Lower limit": number(row.lower, "+.1f"),
        "Lower, 95 % CI": interval(row.lower_low, row.lower_high, "+.1f"),
        "Upper limit": number(row.upper, "+.1f"),
        "Upper, 95 % CI": interval(row.upper_low, row.upper_high, "+.1f"),
    }
