import os
import tempfile
from pathlib import Path

import pytest

LONG = {  # files of a minute and more, which begin first: none of them is left to one process at the end
    "test_tutorials.py",
    "test_kills.py",
    "test_pipeline.py",
    "test_backends.py",
    "test_devices.py",
    "test_presets.py",
    "test_full_disk.py",
    "test_snakefile.py",
    "test_repeatability.py",
    "test_training.py",
}
SOONER = {"tests", "training", "models"}  # folders of tests that train networks or start scripts


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (item.path.name not in LONG, item.path.parent.name not in SOONER))


@pytest.fixture
def as_user():
    """A folder that everybody may read, to be an ordinary user in for a while: root may read and write everything."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        os.seteuid(os.getuid())
