"""Messages about scans, reworded for predict.py, which shares the reading of scans but has no config."""

import contextlib
import re

from utils.checks import InputError
from utils.config.data import DataSection

TRAINED = "the names are those that the model was trained with"
ONE_CONTRAST = "for a model with one input contrast also a plain folder of NIfTI files"
VOLUME = "give the volume that the model was trained on as a 3D file"
# Message of the steps -> message of predict.py; applied in this order.
RULES = (
    (
        r"^data\.root: no readable '(.+)'; .*",
        rf"--input: no readable '\1'; give the folder that holds it, {ONE_CONTRAST}",
    ),
    (
        r"^data\.root: (no file below .+); check data\.root and data\.contrasts$",
        rf"--input: \1; {TRAINED}; {ONE_CONTRAST}",
    ),
    (r"set data\.root to the folder of the dataset", "give a folder of scans"),
    (r"correct data\.root or the filter", "give the folder of the BIDS dataset"),
    (r"give another data\.root", "give another --input"),
    (r"list it as \{file: \.\.\., volumes: n\} if it is a series|correct dataset\.json$", VOLUME),
    (r"set volumes to match", "give a series of as many volumes as the model was trained on"),
    (r", or set data\.resample_to \(README, \"Preparing data\"\)", "; resample them to one"),
    (r"remove '.+' from data\.bias_correction", "the model corrects the bias field, which needs values of 0 and above"),
    (r"so no foreground was found; give data\.mask", "so there is nothing to predict; give a scan that shows tissue"),
    (r", or choose another data\.layout", ", or give another --input"),
    (
        r"^(contrast '.+') is not in data\.contrasts; (.+)",
        r"--model: \1 is not in 'files' of model.json; \2; run the cell again",
    ),
)
KEYS = "|".join(DataSection.model_fields)
OF_NETWORKS = re.compile(r"(?<![\w/'.-])(?:network|slices)\.(\w+)(?![/\w])")
KEY = re.compile(rf"(?<![\w/'.-])data\.({KEYS})\b((?:\.\w+)?)(?![/\w])")


def for_prediction(line):
    """Reword a message of the steps for predict.py: without config keys, because its users may have no config."""
    for pattern, meaning in RULES:
        line = re.sub(pattern, meaning, line)
    line = re.sub(r"(?<![\w/'.-])data\.root\b", "--input", line)
    line = OF_NETWORKS.sub(r"\1 of model.json", line)
    return KEY.sub(lambda match: f"{'files' if match[1] == 'contrasts' else match[1]}{match[2]} of model.json", line)


@contextlib.contextmanager
def in_words_of_predict():
    """Reword every InputError raised inside for predict.py."""
    try:
        yield
    except InputError as error:
        raise InputError([for_prediction(line) for line in error.lines]) from None
