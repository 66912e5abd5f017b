"""Layouts in which a contrast is a folder: CHAOS as released, and the layout of the renal group's public code."""

from pathlib import Path

from data.layouts.files import SUFFIXES, Found, known_name

CHAOS_IMAGES = {
    "t1in": "T1DUAL/DICOM_anon/InPhase",
    "t1out": "T1DUAL/DICOM_anon/OutPhase",
    "t2spir": "T2SPIR/DICOM_anon",
}
CHAOS_LABELS = {"T1DUAL": "T1DUAL/Ground", "T2SPIR": "T2SPIR/Ground"}
CHAOS_NAMES = {"liver": (63,), "right_kidney": (126,), "left_kidney": (189,), "spleen": (252,)}
CHAOS_PLACES = ("*", "MR/*", "*/MR/*", "*/*/MR/*")  # where the folders of subjects may lie below data.root
# Values that `data.scans.folders` assigns to the masks of a labelsTr folder; a kidney is its cortex and its medulla.
RENAL_NAMES: dict[str, tuple[int, ...]] = {
    "left_cortex": (1,),
    "right_cortex": (2,),
    "left_medulla": (3,),
    "right_medulla": (4,),
}
RENAL_NAMES |= {"left_kidney": (1, 3), "right_kidney": (2, 4)}


def find_chaos(wanted):
    """Layout chaos: `MR/<subject>/T1DUAL/DICOM_anon/InPhase/*.dcm`, `T1DUAL/Ground/*.png`, and so on.

    Contrasts are `t1in`, `t1out`, `t2spir`. T1DUAL and T2SPIR have separate grids and labels; `data.label` selects
    the labels (`T1DUAL` or `T2SPIR`), by default those of the first contrast.
    """
    places = {
        ("contrast", n): CHAOS_IMAGES[
            known_name(entry, list(CHAOS_IMAGES), f"data.contrasts.{n}", "the CHAOS contrasts")
        ]
        for n, entry in wanted.entries.items()
    }
    if wanted.labels:
        first = next(iter(places.values())).split("/")[0]
        series = known_name(wanted.label or first, list(CHAOS_LABELS), "data.label", "the CHAOS series")
        places["label", "label"] = CHAOS_LABELS[series]
    found = Found({key: f"{{subject}}/{place}" for key, place in places.items()})
    for pattern in CHAOS_PLACES:
        folders = sorted(folder for folder in wanted.root.glob(pattern) if _has_one(folder, CHAOS_LABELS))
        for folder in folders:
            for key, place in places.items():
                if _is_filled(folder / place):
                    found.add(*key, folder.name, folder / place)
            found.details[folder.name] = {"label_names": CHAOS_NAMES}
        if folders:
            break
    return found


def find_renal(wanted):
    """Layout renal: `<subject>/<contrast>/imagesTr/*.nii`, `labelsTr/*left*volume*`, `*left*cortex*`, ...

    As in the public code of Ghoul et al. (lab-midas/Renal-fMRI-Framework, data/README.md). Several files in `imagesTr`
    are volumes of a series, such as echoes, in the order of their numbers. `data.label` names the contrast whose labels
    are read, by default the first.
    """
    looked_for = {("contrast", name): f"{{subject}}/{folder}/imagesTr" for name, folder in wanted.entries.items()}
    if wanted.labels:
        chosen = wanted.label or next(iter(wanted.entries.values()))
        folder = wanted.entries.get(chosen, chosen)
        looked_for["label", "label"] = f"{{subject}}/{folder}/labelsTr"
    found = Found(looked_for)
    needs_cortex = any(not name.endswith("kidney") for name in wanted.label_names() if name in RENAL_NAMES)
    for subject in sorted(path for path in wanted.root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        for key, pattern in looked_for.items():
            scans = scans_in(subject / Path(pattern).relative_to("{subject}"))
            if not scans:
                continue
            is_single = key[0] == "contrast" and len(scans) == 1
            found.add(*key, subject.name, scans[0] if is_single else scans[0].parent)
            if key[0] == "label" and needs_cortex and not any("cortex" in scan.name.lower() for scan in scans):
                line = f"{subject.name}: '{scans[0].parent}' has no masks of the cortex; add them, or name kidneys only"
                found.problems.append((subject.name, line))
        found.details[subject.name] = {"label_names": RENAL_NAMES}
    return found


def scans_in(folder):
    """List the NIfTI files of a folder, except hidden ones; empty if there is no such folder."""
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in files if path.name.endswith(SUFFIXES) and not path.name.startswith("."))


def _has_one(folder, names):
    return not folder.name.startswith(".") and any((folder / name).is_dir() for name in names)


def _is_filled(folder):
    return folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
