"""requirements.lock: the one set of versions that everything is installed from, with hashes."""

import re

import pytest
import yaml

from utils.environment import ROOT

LOCKS = ("requirements.lock", "requirements-gpu.lock")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pins(name):
    """Return {package: version} of a list of requirements; names as package indexes compare them, without extras."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = dict(line.split("==") for line in lines if line)
    return {normal(package): version for package, version in found.items()}


def normal(package):
    return re.sub(r"[-_.]+", "-", package.split("[")[0]).lower()


def locked(name):
    """Return {package: [(version, marker, number of hashes)]} of a lock; several where a marker tells them apart."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    entries = {}
    for requirement in "\n".join(lines).replace("\\\n", " ").splitlines():
        head, *hashes = re.split(r"\s+(?=--hash)", requirement.strip())
        package, version, marker = re.fullmatch(r"([\w.-]+)==([\w.+]+)(?:\s*;\s*(.+))?", head).groups()
        assert all(HASH.fullmatch(word) for word in hashes), requirement
        entries.setdefault(normal(package), []).append((version, marker, len(hashes)))
    return entries


def test_every_requirement_is_locked_in_its_version_and_for_every_platform():
    found = locked("requirements.lock")
    for package, version in pins("requirements.txt").items():
        [(locked_version, marker, hashes)] = found[package]
        assert (locked_version, marker) == (version, None) and hashes, f"{package}: type make lock"
    assert len(found) > len(pins("requirements.txt")) + 20, "what the requirements need is locked, too"


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_hashes_and_its_versions_exclude_one_another(name):
    for package, entries in locked(name).items():
        assert all(hashes for *_, hashes in entries), package
        assert len(entries) == 1 or all(marker for _, marker, _ in entries), package


def test_the_lock_of_the_gpu_adds_cuda_and_nothing_else():
    extra, base = locked("requirements-gpu.lock"), locked("requirements.lock")
    assert {"nvidia-cudnn-cu12", "nvidia-cublas-cu12"} <= extra.keys() and not extra.keys() & base.keys()
    assert all(package.startswith("nvidia-") for package in extra)
    [(package, version)] = pins("requirements-gpu.txt").items()
    assert pins("requirements.txt")[package] == version


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_index(name):
    assert not re.search(r"https?://|index-url|find-links|trusted-host", (ROOT / name).read_text())


def test_nothing_else_decides_versions():
    """The Makefile, the image and the environment of conda install from the lock."""
    makefile, image = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    [install] = re.findall(r"(?m)^\t\$\(BIN\)/pip install .*$", makefile)
    assert "--require-hashes $(addprefix -r ,$(LOCKS))" in install
    assert "LOCKS := requirements.lock $(if $(GPU),requirements-gpu.lock)" in makefile
    [install] = re.findall(r"(?m)^RUN pip install .*$", image)
    assert install.endswith("--require-hashes -r requirements.lock ${GPU:+-r requirements-gpu.lock}")
    assert "COPY requirements.lock requirements-gpu.lock ./" in image
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[-1] == {"pip": ["-r requirements.lock"]}
