"""The published class splits that are kept beside this file, in `splits/`."""

import importlib.resources
import json
from typing import Any


def published_split(name: str) -> dict[str, Any]:
    """Reads `splits/{name}.json`: meta_train, meta_validation and meta_test."""
    path = importlib.resources.files("maml_jax.data") / "splits" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))
