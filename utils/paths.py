"""Paths as a user of a shell means them: the home folder, environment variables, and names with accents."""

import os
import re
import unicodedata
from pathlib import Path

VARIABLE = re.compile(r"\$(?:\{(\w+)\}|([A-Za-z_]\w*))")
FORMS = ("NFC", "NFD")


def expanded(path):
    """Replace a leading `~` or `~user` by that home folder, and `$NAME` or `${NAME}` by what the environment says.

    Args:
        path: Text or `Path`, as in a config. A folder that exists may have a `$` in its name.

    Returns:
        The same type.

    Raises:
        ValueError: There is no such user, or a variable is not set and no such folder exists.
    """
    text = str(path)
    unset = [braced or bare for braced, bare in VARIABLE.findall(text) if (braced or bare) not in os.environ]
    if unset and not os.path.lexists(text):
        raise ValueError(f"the environment variable {unset[0]} is not set; set it, or take the '$' out")
    text = os.path.expanduser(os.path.expandvars(text))
    if text.startswith("~"):
        raise ValueError(f"there is no home folder '{text.split('/')[0]}'; write the path out")
    return text if isinstance(path, str) else Path(text)


def composed(name):
    """Write accents together with their letters, so that names compare alike whichever system wrote them."""
    return unicodedata.normalize("NFC", name)


def existing_form(path):
    """Return a path as it lies on disk where accents are written apart from their letters, or together.

    Args:
        path: `Path`; one that exists, or of which no form exists, is returned as it is.
    """
    if path.exists() or str(path).isascii():
        return path
    forms = [Path(unicodedata.normalize(form, str(path))) for form in FORMS]
    return next((form for form in forms if form.exists()), path)
