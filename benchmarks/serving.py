"""The peer's end of a comparison: answers a line on the input with a line on the output.

Runs in the peer's own environment, so it needs nothing but numpy. "run" is answered with the
seconds of one outer gradient, "gradient PATH" by writing that gradient to an .npz file.
"""

import json
import sys
import time

import numpy as np


def read(path):
    """Reads a workload: its settings, and its arrays by name."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return json.loads(str(arrays.pop("settings"))), arrays


def serve(facts, gradient, as_arrays, wait):
    """Serves until the input ends.

    Args:
      facts: versions and device, for the record.
      gradient: computes one outer gradient.
      as_arrays: from such a gradient to numpy arrays, with our names and layout.
      wait: waits until a gradient is there.
    """
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        if command == "gradient":
            np.savez(path, **as_arrays(gradient()))
            print("saved", flush=True)
        else:
            began = time.perf_counter()
            wait(gradient())
            print(time.perf_counter() - began, flush=True)
