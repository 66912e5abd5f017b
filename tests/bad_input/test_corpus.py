"""The size of the corpus, so that the numbers in the documentation stay correct."""

from tests.bad_input import (
    test_command_line,
    test_configs,
    test_labels,
    test_layouts,
    test_made_files,
    test_sound_scans,
    test_stores,
    test_weights,
)
from tests.bad_input.scans import CASES as SCANS

REFUSED = {
    "scans": SCANS,
    "labels": test_labels.LABELS,
    "masks": test_labels.MASKS,
    "folders": test_layouts.CASES,
    "patterns": test_layouts.PATTERNS,
    "configs": test_configs.CASES,
    "stores": test_stores.INSIDE | test_stores.OUTSIDE,
    "weights": test_weights.CASES,
    "maps": test_made_files.MAPS,
    "tables": test_made_files.TABLES,
    "splits": test_made_files.SPLITS,
    "scores": test_made_files.BAD_SCORES,
    "models": test_made_files.MODELS,
    "command lines": test_command_line.CASES + test_command_line.OTHERS,
}


def test_the_corpus_holds_more_than_250_inputs_to_refuse_and_some_to_accept():
    assert sum(map(len, REFUSED.values())) >= 250
    assert all(len(cases) >= 4 for cases in REFUSED.values())
    assert len(test_sound_scans.STORED) >= 13
