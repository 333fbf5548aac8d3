"""Waking a GPU: beside everything else, and without a word where there is none."""

import threading

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
