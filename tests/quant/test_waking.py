"""Waking a GPU: beside everything else, and without a word where there is none."""

import ctypes
import threading
from types import SimpleNamespace

import pytest
import torch

from quant.waking import wake_gpu


def wait() -> None:
    for thread in threading.enumerate():
        if thread.name == "wake-gpu":
            thread.join()


def test_a_gpu_is_opened_on_another_thread(monkeypatch):
    opened: list[tuple[str, bool]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch,
        "zeros",
        lambda _, device: opened.append(
            (device, threading.current_thread() is threading.main_thread())
        ),
    )
    wake_gpu()
    wait()
    assert opened == [("cuda", False)]


def test_what_fails_there_is_left_to_whoever_needs_the_gpu(monkeypatch):
    def fail() -> bool:
        raise RuntimeError("CUDA error: no kernel image is available")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    wake_gpu()
    wait()  # pytest turns an exception of a thread into a failure


def test_the_driver_is_started_before_torch_asks_for_it(monkeypatch):
    """It takes tenths of a second, which ctypes spends without Python's lock, and torch with it."""
    done: list[str] = []
    driver = SimpleNamespace(cuInit=lambda flags: done.append(f"started with {flags}"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: done.append(name) or driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: done.append("asked") or False)
    wake_gpu()
    wait()
    assert done == ["libcuda.so.1", "started with 0", "asked"]


@pytest.mark.parametrize("problem", [OSError("no such library"), AttributeError("cuInit")])
def test_without_a_driver_torch_is_asked_all_the_same(monkeypatch, problem):
    done: list[str] = []

    def missing(name: str) -> None:
        raise problem

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: done.append("asked") or False)
    wake_gpu()
    wait()
    assert done == ["asked"]
