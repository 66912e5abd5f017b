"""Signal equations against numbers computed by hand and against simulated magnetisation."""

import numpy as np
import pytest

from data.simulation.sequences import (
    BRAIN_PROTOCOL,
    FAT_OFFSET,
    IN_PHASE_TE,
    OPPOSED_PHASE_TE,
    RENAL_PROTOCOL,
    Sequence,
    inversion_recovery,
    nulling_inversion_time,
    rician,
    shorten_t1,
    spin_echo,
    spoiled_gradient_echo,
)
from data.simulation.tissues import TISSUES, average_tissues

LIPID = {"t1": 382.0, "t2": 68.0, "t2star": 30.0, "adc": 5e-5}


def of_tissue(sequence, name, te=None):
    """Return the signal magnitude of one tissue in the table."""
    tissues, row = average_tissues(), list(TISSUES).index(name)
    values = {key: getattr(tissues, key)[row] for key in ("pd", "t1", "t2", "t2star", "adc", "fat")}
    return abs(sequence.signal(values, LIPID, te or sequence.echo_times[0]))


def test_spin_echo_by_hand():
    # 80 (1 - e^-2) e^-0.5
    assert spin_echo(80.0, 1000.0, 100.0, tr=2000.0, te=50.0) == pytest.approx(41.9555, abs=1e-3)


def test_inversion_recovery_by_hand():
    # 100 (1 - 2 e^-0.5 + e^-3) e^-0.2
    assert inversion_recovery(100.0, 1000.0, 50.0, tr=3000.0, te=10.0, ti=500.0) == pytest.approx(-13.3678, abs=1e-3)


def test_spoiled_gradient_echo_by_hand():
    # E1 = e^-0.1; 100 sin 30 (1 - E1) / (1 - E1 cos 30) e^-0.25
    signal = spoiled_gradient_echo(100.0, 1000.0, 40.0, tr=100.0, te=10.0, flip_degrees=30.0)
    assert signal == pytest.approx(17.1250, abs=1e-3)


def test_spoiled_gradient_echo_is_the_steady_state_of_the_bloch_equations():
    t1, tr, flip = 900.0, 20.0, np.deg2rad(25.0)
    longitudinal = 1.0
    for _ in range(2000):
        transverse = longitudinal * np.sin(flip)
        longitudinal = 1 + (longitudinal * np.cos(flip) - 1) * np.exp(-tr / t1)
    assert spoiled_gradient_echo(1.0, t1, 1e9, tr=tr, te=0.0, flip_degrees=25.0) == pytest.approx(transverse)


def test_ernst_angle_gives_the_largest_signal():
    angles = np.arange(1, 90)
    signal = spoiled_gradient_echo(1.0, 800.0, 40.0, tr=50.0, te=2.0, flip_degrees=angles)
    assert angles[np.argmax(signal)] == round(np.degrees(np.arccos(np.exp(-50 / 800))))


def test_in_and_opposed_phase_echo_times_at_3_tesla():
    assert pytest.approx(0.434, abs=0.001) == FAT_OFFSET  # kHz
    assert pytest.approx(2.30, abs=0.01) == IN_PHASE_TE
    assert pytest.approx(1.15, abs=0.01) == OPPOSED_PHASE_TE


def test_half_fat_half_water_adds_in_phase_and_cancels_in_opposed_phase():
    # Lipid with the relaxation of water, so that only the phase differs.
    equal = {"t1": 800.0, "t2": 40.0, "t2star": 25.0, "adc": 0.0}
    voxel = {"pd": 90.0, **equal, "fat": 50.0}
    dixon_in, dixon_opp = RENAL_PROTOCOL["dixon_in"], RENAL_PROTOCOL["dixon_opp"]
    whole = spoiled_gradient_echo(90.0, 800.0, 25.0, te=IN_PHASE_TE, tr=4.5, flip_degrees=10.0)
    assert abs(dixon_in.signal(voxel, equal, IN_PHASE_TE)) == pytest.approx(whole, rel=1e-5)
    assert abs(dixon_opp.signal(voxel, equal, OPPOSED_PHASE_TE)) < 1e-4 * whole
    # Three quarters water: half of the signal remains.
    quarter = voxel | {"fat": 25.0}
    ratio = abs(dixon_opp.signal(quarter, equal, OPPOSED_PHASE_TE) / dixon_in.signal(quarter, equal, IN_PHASE_TE))
    decay = np.exp((IN_PHASE_TE - OPPOSED_PHASE_TE) / 25.0)
    assert ratio == pytest.approx(0.5 * decay, rel=1e-4)


def test_spin_echo_refocuses_fat():
    sequence = Sequence(spin_echo, {"tr": 2000.0, "te": OPPOSED_PHASE_TE})
    voxel = {"pd": 100.0, "t1": 382.0, "t2": 68.0, "t2star": 9.0, "adc": 0.0}
    half, none = (sequence.signal(voxel | {"fat": fat}, LIPID, OPPOSED_PHASE_TE) for fat in (50.0, 0.0))
    assert half == pytest.approx(none, rel=1e-5)


def test_diffusion_decays_with_b_and_fat_suppression_leaves_little():
    plain = Sequence(spin_echo, {"tr": 3000.0, "te": 60.0})
    weighted = Sequence(spin_echo, {"tr": 3000.0, "te": 60.0}, b_value=600.0)
    assert of_tissue(weighted, "csf") / of_tissue(plain, "csf") == pytest.approx(np.exp(-600 * 3.0e-3), rel=1e-5)
    suppressed = Sequence(spin_echo, {"tr": 3000.0, "te": 60.0}, fat_kept=0.1)
    assert of_tissue(suppressed, "lipid") == pytest.approx(0.1 * of_tissue(plain, "lipid"), rel=1e-5)


def test_flair_nulls_csf_and_keeps_the_rest():
    flair = BRAIN_PROTOCOL["flair"]
    assert of_tissue(flair, "csf") < 1e-4
    assert of_tissue(flair, "oedema") > of_tissue(flair, "grey_matter") > of_tissue(flair, "white_matter") > 5


def test_nulling_inversion_time_is_the_root_of_the_equation():
    ti = nulling_inversion_time(1200.0, 5000.0)
    assert inversion_recovery(100.0, 1200.0, 80.0, tr=5000.0, te=5.0, ti=ti) == pytest.approx(0.0, abs=1e-9)


def test_echoes_of_the_t2_series_decay_with_t2():
    series = RENAL_PROTOCOL["t2_echoes"]
    assert series.is_series and len(series.echo_times) == 4
    signals = [of_tissue(series, "renal_cortex", te) for te in series.echo_times]
    assert all(later < earlier for earlier, later in zip(signals, signals[1:], strict=False))
    first, last = series.echo_times[0], series.echo_times[-1]
    assert (last - first) / np.log(signals[0] / signals[-1]) == pytest.approx(76.0, rel=0.02)


def test_gadolinium_shortens_t1():
    # 1/T1 = 1/1 s + 5 L/mmol/s x 0.8 mmol/L = 5 1/s
    assert shorten_t1(1000.0, 0.8, 5.0) == pytest.approx(200.0)
    assert shorten_t1(1000.0, 0.0, 5.0) == pytest.approx(1000.0)


def test_contrasts_order_tissues_as_in_practice():
    t1w, t2w = RENAL_PROTOCOL["t1w"], RENAL_PROTOCOL["t2w"]
    assert of_tissue(t1w, "liver") > of_tissue(t1w, "renal_cortex") > of_tissue(t1w, "renal_medulla")
    assert of_tissue(t2w, "urine") > of_tissue(t2w, "renal_cortex") > of_tissue(t2w, "liver") > of_tissue(t2w, "muscle")
    bold = RENAL_PROTOCOL["bold"]
    assert of_tissue(bold, "renal_cortex") > of_tissue(bold, "renal_medulla")
    assert of_tissue(BRAIN_PROTOCOL["t1"], "white_matter") > of_tissue(BRAIN_PROTOCOL["t1"], "grey_matter")


def test_rician_noise_in_air_and_in_signal():
    generator = np.random.default_rng(0)
    air = rician(np.zeros(400_000, np.complex64), 7.0, generator)
    assert air.mean() == pytest.approx(7.0 * np.sqrt(np.pi / 2), rel=0.005)
    assert air.std() == pytest.approx(7.0 * np.sqrt(2 - np.pi / 2), rel=0.01)
    # E[M^2] = S^2 + 2 sigma^2 at any signal
    signal = rician(np.full(400_000, 10.0 * np.exp(0.7j)), 7.0, generator)
    assert (signal**2).mean() == pytest.approx(10.0**2 + 2 * 7.0**2, rel=0.01)
