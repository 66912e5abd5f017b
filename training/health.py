"""Health of learned representations: whether they collapse, and whether anchors teach anything."""

import logging
from collections.abc import Mapping, Sequence

log = logging.getLogger("mrccl")

LEAST_SPREAD = 0.05  # mean cosine similarity 0.9975; untrained encoders showed 0.08 to 0.19, with 64 and 128 features
MOST_WITHOUT_NEGATIVE = 0.5  # share of the anchors


def health_complaints(row: Mapping[str, float]) -> dict[str, str]:
    """Say what is wrong with the representations of an epoch, if anything.

    Args:
        row: One epoch of a history; missing measures are not judged.

    Returns:
        One message for each measure beyond its limit, by column: its meaning and what to do. Empty if there is no
        problem.
    """
    spread, share = row.get("val_feature_spread", 1.0), row.get("val_share_without_negative", 0.0)
    complaints = {}
    if spread < LEAST_SPREAD:
        complaints["val_feature_spread"] = (
            f"val_feature_spread is {spread:.3g}, below {LEAST_SPREAD}: the representations have collapsed, nearly all "
            "point the same way (or a validation batch holds a single image); lower learning_rate, raise temperature "
            "or batch_size, and check whether the constraint maps, if used, hold more than one class"
        )
    if share > MOST_WITHOUT_NEGATIVE:
        complaints["val_share_without_negative"] = (
            f"val_share_without_negative is {share:.3g}, above {MOST_WITHOUT_NEGATIVE}: so many anchors see no other "
            "class among their nearest patches, cost 0 and teach nothing; raise nearest_patches, or the clusters of "
            "constraint_maps"
        )
    return complaints


def warn_when_crossing(name: str, measured: Sequence[Mapping[str, float]]) -> None:
    """Warn of measures that are beyond their limit in the last measured epoch but were not in the one before."""
    *earlier, row = measured
    known = health_complaints(earlier[-1]) if earlier else {}
    for column, complaint in health_complaints(row).items():
        if column not in known:
            log.warning("%s: epoch %d: %s", name, row["epoch"], complaint)


def warn_at_the_end(name: str, kept: Mapping[str, float], last: Mapping[str, float]) -> None:
    """Repeat the problems of the epoch whose weights are kept, and of the last one."""
    about_kept = health_complaints(kept)
    for complaint in about_kept.values():
        log.warning("%s: the weights kept, of epoch %d: %s", name, kept["epoch"], complaint)
    for column, complaint in health_complaints(last).items():
        if column not in about_kept:
            text = "%s: the last epoch, %d: %s (not so in epoch %d, whose weights are kept)"
            log.warning(text, name, last["epoch"], complaint, kept["epoch"])
