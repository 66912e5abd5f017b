"""Signal equations of the simulated sequences, and the two protocols built from them.

Times in ms, proton density in percent, flip angles in degrees, b-values in s/mm². Signals are signed or complex;
magnitude and noise come later (`data.simulation.subjects`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Main methylene peak of fat, 3.4 ppm below water, at 3 T (42.577 MHz/T): cycles per ms.
FAT_OFFSET = 3.4e-6 * 42.577e3 * 3.0
IN_PHASE_TE = 1.0 / FAT_OFFSET
OPPOSED_PHASE_TE = 0.5 / FAT_OFFSET


def spin_echo(pd, t1, t2, *, tr, te):
    """Return PD (1 - e^{-TR/T1}) e^{-TE/T2}, the 90°-180° spin echo with TE much shorter than TR."""
    return pd * (1.0 - np.exp(-tr / t1)) * np.exp(-te / t2)


def inversion_recovery(pd, t1, t2, *, tr, te, ti):
    """Return PD (1 - 2 e^{-TI/T1} + e^{-TR/T1}) e^{-TE/T2}, signed; TE much shorter than TR."""
    return pd * (1.0 - 2.0 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def spoiled_gradient_echo(pd, t1, t2star, *, tr, te, flip_degrees):
    """Return the steady state of ideal spoiling, PD sin(a) (1 - E1) / (1 - E1 cos(a)) e^{-TE/T2*}, E1 = e^{-TR/T1}."""
    flip = np.deg2rad(flip_degrees)
    recovery = np.exp(-tr / t1)
    return pd * np.sin(flip) * (1.0 - recovery) / (1.0 - recovery * np.cos(flip)) * np.exp(-te / t2star)


def nulling_inversion_time(t1, tr):
    """Return the inversion time (ms) at which tissue of that T1 (ms) gives no signal: T1 ln(2 / (1 + e^{-TR/T1}))."""
    return t1 * np.log(2.0 / (1.0 + np.exp(-tr / t1)))


def shorten_t1(t1, concentration, relaxivity):
    """Return T1 (ms) with a contrast agent of the given concentration (mmol/L) and relaxivity (L/mmol/s)."""
    return 1.0 / (1.0 / t1 + relaxivity * concentration / 1000.0)


def rician(signal, sigma, generator):
    """Return the magnitude of a signal with Gaussian noise of standard deviation `sigma` in both channels."""
    real, imaginary = generator.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    return np.abs(signal + real + 1j * imaginary)


@dataclass(frozen=True)
class Sequence:
    """One contrast: a signal equation of this module, its settings, and its effect on fat, diffusion and T1.

    Attributes:
        equation: `spin_echo`, `inversion_recovery` or `spoiled_gradient_echo`.
        settings: Keyword arguments of the equation; if `te` is a tuple, the contrast is a series of echoes.
        b_value: Diffusion weighting, s/mm².
        fat_kept: Fraction of the fat signal that remains after fat suppression.
        gadolinium: Whether it is acquired after contrast agent.
    """

    equation: Callable
    settings: dict
    b_value: float = 0.0
    fat_kept: float = 1.0
    gadolinium: bool = False

    @property
    def echo_times(self):
        """Echo times in ms, a tuple; one entry unless the contrast is a series."""
        te = self.settings["te"]
        return te if isinstance(te, tuple) else (te,)

    @property
    def is_series(self):
        """Whether the contrast has several echoes and therefore a fourth axis."""
        return isinstance(self.settings["te"], tuple)

    def signal(self, water: Mapping[str, Any], lipid: Mapping[str, float], te: float) -> np.ndarray:
        """Return the complex signal of a mixture of water and lipid at one echo time.

        Spin echoes refocus the chemical shift; in gradient echoes, fat dephases from water by 2 pi FAT_OFFSET TE.

        Args:
            water: Parameters `pd`, `t1`, `t2`, `t2star` and `adc` of the water, and the `fat` fraction (percent),
                arrays of one shape.
            lipid: Scalars `t1`, `t2`, `t2star` and `adc` of the lipid protons.
            te: Echo time, ms.

        Returns:
            Complex array of that shape, in percent of the signal of pure water.
        """
        settings = self.settings | {"te": te}
        is_gradient_echo = self.equation is spoiled_gradient_echo
        watery, fatty = (
            self.equation(1.0, part["t1"], part["t2star" if is_gradient_echo else "t2"], **settings)
            * np.exp(-self.b_value * part["adc"])
            for part in (water, lipid)
        )
        phase = np.exp(2j * np.pi * FAT_OFFSET * te) if is_gradient_echo else 1.0
        fraction = water["fat"] / 100.0
        mixture = (1.0 - fraction) * watery + fraction * (self.fat_kept * fatty * phase)
        return (water["pd"] * mixture).astype(np.complex64)


DIXON = {"tr": 4.5, "flip_degrees": 10.0}
# A quantitative renal protocol like that of Ghoul et al. 2024; Table 1 of the paper is an image, so settings are ours.
RENAL_PROTOCOL = {
    "dixon_in": Sequence(spoiled_gradient_echo, DIXON | {"te": IN_PHASE_TE}),
    "dixon_opp": Sequence(spoiled_gradient_echo, DIXON | {"te": OPPOSED_PHASE_TE}),
    "t1w": Sequence(inversion_recovery, {"tr": 4000.0, "te": 10.0, "ti": 1200.0}),
    "t2w": Sequence(spin_echo, {"tr": 3000.0, "te": 80.0}, fat_kept=0.5),
    # The ninth in-phase echo: fat does not interfere with the decay.
    "bold": Sequence(spoiled_gradient_echo, {"tr": 75.0, "te": 9 * IN_PHASE_TE, "flip_degrees": 30.0}),
    "dwi": Sequence(spin_echo, {"tr": 3000.0, "te": 60.0}, b_value=600.0, fat_kept=0.08),
    "t2_echoes": Sequence(spin_echo, {"tr": 2000.0, "te": (14.0, 42.0, 70.0, 112.0)}, fat_kept=0.3),
}
FLAIR_TR = 9000.0
T1W_BRAIN = {"tr": 250.0, "te": 3.0, "flip_degrees": 75.0}
# A clinical tumour protocol (ours). FLAIR nulls CSF with the T1 of the tissue table.
BRAIN_PROTOCOL = {
    "t1": Sequence(spoiled_gradient_echo, T1W_BRAIN),
    "t1gd": Sequence(spoiled_gradient_echo, T1W_BRAIN, gadolinium=True),
    "t2": Sequence(spin_echo, {"tr": 5000.0, "te": 100.0}),
    "flair": Sequence(
        inversion_recovery, {"tr": FLAIR_TR, "te": 100.0, "ti": nulling_inversion_time(4000.0, FLAIR_TR)}
    ),
}
