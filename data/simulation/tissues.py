"""The table of tissue parameters at 3 T from which the simulated cohorts are made.

The table holds the water protons of a tissue; its lipid protons behave as in the row "lipid". T1, T2 and T2* are in ms,
proton density (PD) and fat fraction in percent, the apparent diffusion coefficient (ADC) in mm²/s. "ours" marks an
estimate without a measured source. T2*, PD and the spread between subjects are always ours unless a row says otherwise:
they depend more on shim and water content than on any one publication.
"""

from dataclasses import dataclass

import numpy as np

PARAMETERS = ("t1", "t2", "t2star", "pd", "adc", "fat")

BAZELAIRE = "T1, T2: de Bazelaire et al., Radiology 2004"
STANISZ = "Stanisz et al., Magn Reson Med 2005"
THOENY = "ADC: Thoeny et al., Radiology 2005"

# name: (T1 ms, T2 ms, T2* ms, PD %, ADC mm²/s, fat %, spread between subjects, source)
TISSUES = {
    "air": (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, "no signal"),
    "lipid": (382.0, 68.0, 30.0, 90.0, 5e-5, 100.0, 0.03, f"{BAZELAIRE}, subcutaneous fat; rest ours"),
    "adipose": (900.0, 50.0, 25.0, 90.0, 1.0e-3, 93.0, 0.05, "ours: mostly lipid, a little water"),
    "muscle": (1420.0, 32.0, 24.0, 78.0, 1.5e-3, 3.0, 0.07, "T1, T2: Gold et al., AJR 2004; rest ours"),
    "liver": (809.0, 34.0, 23.0, 78.0, 1.2e-3, 3.6, 0.10, f"{BAZELAIRE}; fat: Szczepaniak et al., AJP Endo 2005"),
    "spleen": (1328.0, 61.0, 42.0, 82.0, 0.9e-3, 0.5, 0.08, f"{BAZELAIRE}; rest ours"),
    "renal_cortex": (1142.0, 76.0, 50.0, 84.0, 2.03e-3, 0.5, 0.09, f"{BAZELAIRE}; {THOENY}"),
    "renal_medulla": (1545.0, 81.0, 31.0, 86.0, 1.87e-3, 0.5, 0.09, f"{BAZELAIRE}; {THOENY}"),
    "urine": (3500.0, 800.0, 200.0, 100.0, 2.8e-3, 0.0, 0.05, "ours: close to free water"),
    "pancreas": (725.0, 43.0, 28.0, 80.0, 1.4e-3, 6.0, 0.10, f"{BAZELAIRE}; rest ours"),
    "marrow": (586.0, 49.0, 12.0, 70.0, 0.5e-3, 40.0, 0.10, f"{BAZELAIRE}, L4 vertebra; rest ours"),
    "disc": (1100.0, 80.0, 40.0, 75.0, 1.6e-3, 0.0, 0.15, "ours"),
    "cortical_bone": (300.0, 1.0, 0.5, 20.0, 0.0, 0.0, 0.05, "ours: no signal at these echo times"),
    "spinal_cord": (993.0, 78.0, 50.0, 75.0, 1.0e-3, 0.0, 0.04, f"T1, T2: {STANISZ}; rest ours"),
    "blood": (1932.0, 40.0, 30.0, 85.0, 2.5e-3, 0.0, 0.06, f"T1: {STANISZ}; T2 apparent, short for flow: ours"),
    "bowel_wall": (1100.0, 60.0, 35.0, 82.0, 1.6e-3, 1.0, 0.12, "ours: between smooth muscle and mucosa"),
    "bowel_fluid": (2600.0, 350.0, 80.0, 98.0, 2.6e-3, 0.0, 0.12, "ours: watery"),
    "bowel_stool": (950.0, 75.0, 20.0, 70.0, 1.5e-3, 4.0, 0.15, "ours: pasty, close to kidney on purpose"),
    "bile": (2200.0, 450.0, 150.0, 98.0, 2.6e-3, 0.0, 0.15, "ours"),
    "csf": (4000.0, 1500.0, 500.0, 100.0, 3.0e-3, 0.0, 0.02, "ours: free water; ADC at 37 °C, Mills, J Phys Chem 1973"),
    "grey_matter": (
        1331.0,
        110.0,
        46.0,
        82.0,
        0.89e-3,
        0.0,
        0.04,
        "T1, T2, T2*: Wansapura et al., JMRI 1999; ADC: Helenius et al., AJNR 2002",
    ),
    "white_matter": (
        832.0,
        79.6,
        47.0,
        70.0,
        0.70e-3,
        0.0,
        0.04,
        "T1, T2, T2*: Wansapura et al., JMRI 1999; ADC: Helenius et al., AJNR 2002",
    ),
    "white_matter_lesion": (1250.0, 150.0, 60.0, 78.0, 1.0e-3, 0.0, 0.08, "ours"),
    "necrosis": (2400.0, 260.0, 90.0, 92.0, 2.0e-3, 0.0, 0.15, "ours"),
    "oedema": (1400.0, 190.0, 70.0, 84.0, 1.4e-3, 0.0, 0.08, "ours"),
    "enhancing_tumour": (1450.0, 125.0, 55.0, 84.0, 1.1e-3, 0.0, 0.10, "ours"),
}
TISSUE_INDEX = {name: index for index, name in enumerate(TISSUES)}

# Longitudinal relaxivity of gadobutrol in plasma at 3 T, per mmol/L per s: Rohrer et al., Invest Radiol 2005.
RELAXIVITY = 5.0
# Concentration in mmol/L a few minutes after a single dose (ours); tissues not named take up none.
GADOLINIUM = {"enhancing_tumour": 0.28, "blood": 0.5, "necrosis": 0.02}


@dataclass(frozen=True)
class TissueParameters:
    """Parameters of every tissue of one subject, each array `(tissues,)` in the order of `TISSUES`."""

    t1: np.ndarray
    t2: np.ndarray
    t2star: np.ndarray
    pd: np.ndarray
    adc: np.ndarray
    fat: np.ndarray
    gadolinium: np.ndarray


def average_tissues():
    """Return the parameters of the table itself, as `TissueParameters`."""
    rows = np.array([row[: len(PARAMETERS)] for row in TISSUES.values()])
    columns = dict(zip(PARAMETERS, rows.T, strict=True))
    return TissueParameters(**columns, gadolinium=np.array([GADOLINIUM.get(name, 0.0) for name in TISSUES]))


def draw_tissues(generator):
    """Draw one subject's tissue parameters around the table.

    Every parameter is multiplied by a log-normal factor with the spread of the tissue; T2 and T2* share one factor, so
    that T2* stays below T2. Proton density varies half as much: water content is regulated more closely than
    relaxation. Fat fractions below one half vary by a factor of about 1.6, as liver fat does in a population
    (Szczepaniak et al. 2005); the contrast agent's concentration varies by 30 %.

    Args:
        generator: `numpy.random.Generator`.

    Returns:
        `TissueParameters`, units as in the table.
    """
    average = average_tissues()
    spread = np.array([row[len(PARAMETERS)] for row in TISSUES.values()])

    def factor(width):
        return np.exp(width * generator.standard_normal(len(TISSUES)))

    transverse = factor(spread)
    lean = np.minimum(average.fat * factor(np.full(len(TISSUES), 0.5)), 60.0)
    return TissueParameters(
        t1=average.t1 * factor(spread),
        t2=average.t2 * transverse,
        t2star=average.t2star * transverse,
        pd=np.minimum(average.pd * factor(spread / 2), 100.0),
        adc=average.adc * factor(spread),
        fat=np.where(average.fat > 50.0, average.fat, lean),
        gadolinium=average.gadolinium * factor(np.full(len(TISSUES), 0.3)),
    )
