"""The tissue table is complete, plausible and cited, and subjects vary around it."""

import re

import numpy as np
import pytest

from data.simulation.tissues import PARAMETERS, TISSUE_INDEX, TISSUES, average_tissues, draw_tissues


def test_every_row_says_where_its_numbers_come_from():
    for name, row in TISSUES.items():
        assert len(row) == len(PARAMETERS) + 2, name
        assert name == "air" or "ours" in row[-1] or re.search(r"(19|20)\d\d", row[-1]), name


def test_parameters_are_physically_possible():
    tissues = average_tissues()
    assert (tissues.t2star <= tissues.t2).all() and (tissues.t2 <= tissues.t1).all()
    assert (tissues.pd >= 0).all() and (tissues.pd <= 100).all() and (tissues.fat <= 100).all()
    assert (tissues.adc <= 3.0e-3).all()  # free water at body temperature, mm²/s


def test_known_values_are_those_of_the_publications():
    tissues = average_tissues()
    cortex, medulla = TISSUE_INDEX["renal_cortex"], TISSUE_INDEX["renal_medulla"]
    assert (tissues.t1[cortex], tissues.t2[cortex]) == (1142, 76)  # de Bazelaire et al. 2004, Table
    assert (tissues.t1[medulla], tissues.t2[medulla]) == (1545, 81)


def test_subjects_spread_around_the_table_by_the_width_of_the_row():
    generator = np.random.default_rng(3)
    subjects = [draw_tissues(generator) for _ in range(800)]
    liver = TISSUE_INDEX["liver"]
    logs = np.log([subject.t1[liver] for subject in subjects])
    assert np.exp(logs.mean()) == pytest.approx(809, rel=0.02)
    assert logs.std() == pytest.approx(0.10, rel=0.1)
    ratio = [subject.t2star[liver] / subject.t2[liver] for subject in subjects]
    assert np.ptp(ratio) < 1e-9
    fat = np.array([subject.fat[liver] for subject in subjects])
    assert np.median(fat) == pytest.approx(3.6, rel=0.1) and fat.max() <= 60
    assert max(subject.pd.max() for subject in subjects) <= 100
