"""The small files beside a checkpoint's weights: JSON objects, templates, special tokens."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erniechat.errors import CheckpointError

_AGAIN = "download the model again"


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file; empty if there is no such file.

    Raises:
        CheckpointError: If the file is not a JSON object in UTF-8.
    """
    if not path.exists():
        return {}
    try:
        data = json.loads(_read_text(path))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not JSON ({exc})", _AGAIN) from exc
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object", _AGAIN)
    return data


def read_template_sources(folder: Path) -> dict[str, str]:
    """A checkpoint's chat templates by name; the only one is "default"; empty if there is none.

    Read from ``chat_template.jinja``, else from ``chat_template`` in ``tokenizer_config.json``:
    a string, or a list of ``{"name", "template"}``.

    Raises:
        CheckpointError: If a file is damaged.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return {"default": _read_text(path)}
    value = read_json_object(folder / "tokenizer_config.json").get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list) or not all(_is_named_template(item) for item in value):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: chat_template must be text or a list of "
            "objects with name and template",
            _AGAIN,
        )
    return {item["name"]: item["template"] for item in value}


def read_special_tokens(folder: Path) -> dict[str, str]:
    """The ``…_token`` entries of tokenizer_config.json, text or ``{"content": text}``.

    Raises:
        CheckpointError: If the file is damaged.
    """
    out = {}
    for key, value in read_json_object(folder / "tokenizer_config.json").items():
        token = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(token, str):
            out[key] = token
    return out


def _is_named_template(item: object) -> bool:
    return isinstance(item, Mapping) and all(
        isinstance(item.get(key), str) for key in ("name", "template")
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{path} cannot be read as UTF-8 ({exc})", _AGAIN) from exc
