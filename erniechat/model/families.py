"""The model families by ``model_type``. A new one is a file beside this one and a line here."""

from collections.abc import Mapping
from typing import Any

from erniechat.errors import CheckpointError, UnsupportedModelError
from erniechat.model.ernie4_5 import ERNIE4_5, ERNIE4_5_MOE
from erniechat.model.family import Family, shown

FAMILIES: Mapping[str, Family] = {f.model_type: f for f in (ERNIE4_5, ERNIE4_5_MOE)}


def family_of(raw_config: Mapping[str, Any]) -> Family:
    """The family that a config.json names.

    Raises:
        CheckpointError: If it names none.
        UnsupportedModelError: If this program does not have it.
    """
    model_type = raw_config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            "config.json has no model_type", "use a checkpoint in Hugging Face format"
        )
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"model_type {shown(model_type)} is not supported; this program runs "
            f"{', '.join(FAMILIES)}",
            "for instance baidu/ERNIE-4.5-21B-A3B-PT",
        )
    return FAMILIES[model_type]
