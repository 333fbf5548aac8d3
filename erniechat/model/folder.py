"""The files of a checkpoint's folder: its JSON, its list of shards, its links. No torch."""

import json
import stat
from pathlib import Path
from typing import Any

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.family import shown

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_JSON_NBYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of sensible size.

    Raises:
        CheckpointError: If it is missing, too large or not a JSON object.
    """
    check_link(path)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a regular file", "fetch the file again")
        if path.stat().st_size > MAX_JSON_NBYTES:
            raise CheckpointError(f"{path} is larger than 64 MiB", "fetch the file again")
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "name a folder in Hugging Face layout"
        ) from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not readable JSON", "fetch the file again") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object", "fetch the file again")
    return value


def shard_names(folder: Path) -> list[str]:
    """The names of the safetensors files that a folder should have, in order.

    Raises:
        CheckpointError: If its index is damaged or names files elsewhere, or there is none.
        UnsupportedModelError: If the folder holds another kind of checkpoint.
    """
    if (folder / INDEX_FILE).exists():
        weight_map = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{INDEX_FILE} has no weight_map", "fetch the file again")
        names = sorted({str(name) for name in weight_map.values()})
        for name in names:
            if Path(name).name != name or not name.endswith(".safetensors") or "\\" in name:
                raise CheckpointError(
                    f"{INDEX_FILE} names {shown(name)}, which is not a safetensors file beside it",
                    "do not trust this checkpoint",
                )
        return names
    if (folder / SINGLE_FILE).exists():
        return [SINGLE_FILE]
    if any(folder.glob("*.pdparams")):
        raise UnsupportedModelError(
            f"{folder} is in Paddle's format", "use the checkpoint whose name ends in -PT"
        )
    if any(folder.glob("*.bin")):
        raise UnsupportedModelError(
            f"{folder} has pickled weights, which can run code when opened",
            "use a checkpoint with safetensors files",
        )
    raise CheckpointError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}",
        "name a folder in Hugging Face layout",
    )


def check_link(path: Path) -> None:
    """Refuse a link that leads out of a checkpoint's folder, or out of its part of the hub's cache.

    In that cache a snapshot's files are links to ``blobs`` beside ``snapshots``.

    Raises:
        CheckpointError: Naming the link.
    """
    if not path.is_symlink():
        return
    home = path.parent.parent.parent if path.parent.parent.name == "snapshots" else path.parent
    target = path.resolve()
    if not target.is_relative_to(home.resolve()):
        raise CheckpointError(
            f"{path} is a link to {shown(str(target))[1:-1]}, outside the model's folder",
            "put the file itself there, or name the folder that it is in",
        )
