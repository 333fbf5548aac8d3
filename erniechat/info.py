"""What this machine and this program are: devices, kernels and why not, versions, folders."""

import importlib.metadata
import os
import platform

import platformdirs
import torch

from erniechat import __version__
from quant.formats import FORMATS
from quant.kernels import BACKENDS
from quant.kernels.native import NativeBackend

PACKAGES = (
    "torch", "tokenizers", "huggingface_hub", "bitsandbytes", "prompt_toolkit", "rich",
    "llguidance", "gguf", "shtab",
)  # fmt: skip  # a list to read


def gather_facts() -> dict[str, dict[str, str]]:
    """Facts by group and name."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "kernels": _kernels(),
        "folders": _folders(),
    }


def _versions() -> dict[str, str]:
    out = {"erniechat": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    out["cuda"] = torch.version.cuda or "none: torch is built without it"
    return out


def _devices() -> dict[str, str]:
    cores = os.cpu_count() or 1
    out = {"cpu": f"{platform.machine()}, {cores} cores, torch uses {torch.get_num_threads()}"}
    if not torch.cuda.is_available():
        return out | {"cuda": "none: torch finds no GPU"}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        out[f"cuda:{index}"] = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return out


def _kernels() -> dict[str, str]:
    """For each backend and device, the formats that it serves, or why it serves none."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    out = {}
    for name, make in BACKENDS.items():
        for device in devices:
            backend = make()
            reasons = {f: backend.why_not(f, torch.device(device)) for f in FORMATS}
            served = [f for f, reason in reasons.items() if not reason]
            told = ", ".join(served) or f"no: {next(iter(reasons.values()))}"
            if served and isinstance(backend, NativeBackend):
                told += f", by {backend.paths()[0]} instructions"
            out[f"{name} on {device}"] = " ".join(told.split())
    return out


def _folders() -> dict[str, str]:
    return {
        "settings": str(platformdirs.user_config_path("erniechat")),
        "sessions": str(platformdirs.user_data_path("erniechat") / "sessions"),
        "history": str(platformdirs.user_state_path("erniechat")),
        "quantized copies": str(platformdirs.user_cache_path("erniechat") / "copies"),
        "hub cache": _hub_cache(),
    }


def _hub_cache() -> str:
    try:
        from huggingface_hub.constants import HF_HUB_CACHE  # slow to import, and only needed here
    except ValueError as exc:
        return f"not known: huggingface_hub cannot read its variables ({exc})"
    return str(HF_HUB_CACHE)
