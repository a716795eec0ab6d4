"""What the programs of this folder share: the tests' tools, and how a result is written."""

import argparse
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


def asked(file, doc, arguments, **how_often):
    """Reads how often a program disturbs, by one flag, the seed, and where the result goes."""
    ((name, default),) = how_often.items()
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    output = HERE / "results" / f"{pathlib.Path(file).stem}.json"
    parser.add_argument("--output", type=pathlib.Path, default=output)
    return parser.parse_args(arguments)


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
