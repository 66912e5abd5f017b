"""tools.doctor says why no GPU is used, and what to do; a script stands in for nvidia-smi."""

import os
import stat

import pytest

from tools import doctor

CARDS = "NVIDIA H200, 580.95.05\nNVIDIA H200, 580.95.05"
HERE = "trains on the processor, although there is NVIDIA H200, 580.95.05 (card, driver): "
NO_DRIVER = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
UPDATED = "Failed to initialize NVML: Driver/library version mismatch"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that sets up nvidia-smi (None: not installed) and CUDA_VISIBLE_DEVICES."""
    monkeypatch.setattr(doctor, "device_name", lambda: "cpu")
    monkeypatch.setenv("PATH", str(tmp_path))

    def set_up(said, code=0, visible=None, with_cuda=True, seconds=0):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(doctor, "is_for_processors", lambda: not with_cuda)
        if said is not None:
            command = tmp_path / "nvidia-smi"
            command.write_text(f'#!/bin/sh\n/bin/sleep {seconds}\n/bin/cat <<"END"\n{said}\nEND\nexit {code}\n')
            command.chmod(command.stat().st_mode | stat.S_IXUSR)
        *_, (state, line) = doctor.backend()
        assert state == doctor.NOTE
        return line

    return set_up


def test_without_nvidia_smi(machine):
    line = "trains on the processor: there is no nvidia-smi; if there is an NVIDIA card, install its driver; "
    assert machine(None).startswith(line)
    assert machine(None, visible="").startswith(line)


def test_a_driver_that_fails_is_quoted(machine):
    assert machine(NO_DRIVER, 9) == (
        f"trains on the processor: nvidia-smi fails ({NO_DRIVER}); reinstall NVIDIA's driver"
    )
    assert machine(UPDATED, 18) == (
        f"trains on the processor: nvidia-smi fails ({UPDATED}); restart the machine: the driver was updated since"
    )
    assert machine("", 3).startswith("trains on the processor: nvidia-smi fails (exit code 3); ")


def test_a_driver_without_cards(machine):
    assert machine("No devices were found", 6) == (
        "trains on the processor: nvidia-smi sees no card (No devices were found); on a cluster ask for one, such as "
        "--gres=gpu:1"
    )


def test_a_driver_that_does_not_answer(machine, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS_OF_DRIVER", 0.1)
    assert "nvidia-smi does not answer within 0.1 s; restart the machine" in machine(CARDS, seconds=2)


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_cards_that_are_hidden(machine, visible):
    expected = f"{HERE}CUDA_VISIBLE_DEVICES='{visible}' hides it; unset CUDA_VISIBLE_DEVICES"
    assert machine(CARDS, visible=visible) == machine(CARDS, visible=visible, with_cuda=False) == expected


def test_a_card_that_is_not_there(machine):
    expected = f"{HERE}CUDA_VISIBLE_DEVICES='2' names no card; they are counted from 0 to 1"
    assert machine(CARDS, visible="2") == expected


@pytest.mark.parametrize("visible", [None, "0", "1,0", "GPU-5d5ba0d6"])
def test_a_backend_without_cuda_or_without_its_libraries(machine, visible):
    name = doctor.backend_name() or os.environ.get("KERAS_BACKEND", "tensorflow")
    line = machine(CARDS, visible=visible, with_cuda=False)
    assert line.startswith(f"{HERE}{name} ") and " is a build without CUDA; " in line
    line = machine(CARDS, visible=visible)
    assert line.startswith(f"{HERE}{name} ") and " finds no CUDA libraries, or needs a newer driver; " in line
    assert doctor.INSTALL_GPU[name] in line


@pytest.mark.parametrize("packages", [{"jax", "jax-cuda13-plugin"}, {"jax", "jaxlib"}])
def test_what_a_backend_was_built_for(monkeypatch, packages):
    monkeypatch.setattr(doctor, "backend_name", lambda: "jax")
    monkeypatch.setattr(doctor, "_installed", lambda: packages)
    assert doctor.is_for_processors() == ("jax-cuda13-plugin" not in packages)
    monkeypatch.setattr(doctor, "backend_name", lambda: "tensorflow")
    for with_cuda in (True, False):
        monkeypatch.setattr(doctor.tensorflow().test, "is_built_with_cuda", lambda answer=with_cuda: answer)
        assert doctor.is_for_processors() != with_cuda
