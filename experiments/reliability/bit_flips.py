"""Flips single bits in the newest checkpoint of a real run, and counts how many are noticed.

    python experiments/reliability/bit_flips.py [--flips 200] [--seed 0] [--output FILE]

The files are taken in turn, the manifest and its seal among them, the bit in each at random. A flip
is detected if the run is taken up from the checkpoint before, equal in every bit to what was saved
there, with a warning that names the file. A few minutes.
"""

import collections
import random
import re
import time
import warnings

import jax
import numpy as np
from common import asked, workplace, write

from children import finish, start
from maml_jax import checkpoints, runs
from test_kill import RUN

KINDS = {"manifest.json": "manifest", "manifest.sha256": "seal of the manifest"}


def flip(file, rng):
    """Flips one bit of a file; returns what was in it."""
    content = file.read_bytes()
    place = rng.randrange(8 * len(content))
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    file.write_bytes(damaged)
    return content


def taken_up(run_dir):
    """Reads the run as `maml-jax resume` does; returns its progress and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress = runs.load_run(run_dir)[1]
    return progress, " ".join(str(warning.message) for warning in caught)


def bits(tree):
    return [(a.dtype.name, a.shape, a.tobytes()) for a in map(np.asarray, jax.tree.leaves(tree))]


def main(arguments=None):
    options = asked(__file__, __doc__, arguments, flips=200)
    began, rng = time.monotonic(), random.Random(options.seed)
    detected, flips_by_kind = 0, collections.Counter()
    with workplace() as (folder, environment):
        run_dir = folder / "run"
        assert finish(start([*RUN, "--run-dir", run_dir], environment))[0] == 0
        before, newest = checkpoints.steps(run_dir / "checkpoints")
        # The oracle: the checkpoint before, read where there is no newer one.
        hidden = folder / "newest"
        place = run_dir / "checkpoints" / f"{newest:08d}"
        place.rename(hidden)
        wanted = bits(taken_up(run_dir)[0])
        hidden.rename(place)
        files = sorted(file for file in place.rglob("*") if file.is_file())
        for trial in range(options.flips):
            file = files[trial % len(files)]
            content = flip(file, rng)
            progress, said = taken_up(run_dir)
            named = re.search("manifest" if file.name in KINDS else re.escape(file.name), said)
            detected += progress.step == before and bits(progress) == wanted and bool(named)
            flips_by_kind[KINDS.get(file.name, "state")] += 1
            file.write_bytes(content)
        progress, said = taken_up(run_dir)
        assert (progress.step, said) == (newest, "")
    results = {"flips": options.flips, "detected": detected, "files": len(files)}
    write(options.output, began, **results, flips_by_kind=flips_by_kind, seed=options.seed)
    print(f"{options.flips} bit flips, {detected} detected")
    return int(detected < options.flips)


if __name__ == "__main__":
    raise SystemExit(main())
