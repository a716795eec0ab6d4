"""What the programs of this folder share: the tests' tools, and how a result is written."""

import contextlib
import json
import os
import pathlib
import sys
import tempfile
import time
from importlib.metadata import version

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from maml_jax.benchmarking import machine  # noqa: E402


@contextlib.contextmanager
def workplace():
    """A folder for runs, and the environment of their processes, which compile once."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        yield (
            folder,
            {
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "MAML_JAX_CACHE_DIR": str(folder / "cache"),
            },
        )


def write(output, began, **content):
    """Writes a result beside what it was measured on, and says it."""
    content["seconds"] = round(time.monotonic() - began)
    facts = {**machine(), "orbax-checkpoint": version("orbax-checkpoint")}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({**content, "machine": facts}, indent=1) + "\n")
    print(f"{output.name}: {content}")
