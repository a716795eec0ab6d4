"""Results on disk: one JSON file per experiment, one entry per finished cell."""

import json
import math
import os
import pathlib
import time

import numpy as np


def plain(value):
    """Makes a value fit for JSON: 5 significant digits, null where not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if getattr(value, "ndim", 0):
        return [plain(item) for item in np.asarray(value)]
    number = float(value)
    return float(f"{number:.5g}") if math.isfinite(number) else None


def load(path):
    """Reads the cells of an experiment: {name: {"settings": ..., "values": ...}}."""
    path = pathlib.Path(path)
    return json.loads(path.read_text()) if path.exists() else {}


def write(path, content):
    """Writes JSON in one piece: a stopped run leaves the file before it or the new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in content.items()]
    partial.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    os.replace(partial, path)


def cell(path, name, settings, compute):
    """Gives the values of a cell: those on disk, if of the same settings, or computed ones.

    Args:
      path: the experiment's JSON file.
      name: of the cell, unique in the file.
      settings: what the values depend on, apart from the code.
      compute: function without arguments that returns a dict of numbers and lists.

    Returns:
      The values as JSON has them, with None for what is not finite.
    """
    path, settings = pathlib.Path(path), plain(settings)
    known = load(path)
    if name in known and known[name]["settings"] == settings:
        return known[name]["values"]
    start = time.perf_counter()
    values = plain(compute())
    seconds = round(time.perf_counter() - start, 1)
    write(path, {**known, name: {"settings": settings, "seconds": seconds, "values": values}})
    print(f"{path.stem}  {name}  {seconds} s", flush=True)
    return values


def array(values):
    """Turns lists with None back into an array with infinities, for "diverged"."""
    return np.array(
        [array(v) if isinstance(v, list) else math.inf if v is None else v for v in values]
    )
