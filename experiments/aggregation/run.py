"""Mean, sum or weighted? The study of the reduction over the meta-batch.

    python experiments/aggregation/run.py [--quick] [--folder FOLDER] [E1 E2 ...]

Finished cells are kept in `results/` and not computed again while their settings stay the same,
so a stopped run goes on where it was. `--quick` runs the same code at sizes that say nothing, in
another folder.
"""

import argparse
import importlib
import os
import pathlib
import time

import budget

HERE = pathlib.Path(__file__).resolve().parent
EXPERIMENTS = {
    "E1": "e1_equivalence",
    "E2": "e2_protocols",
    "E3": "e3_weights",
    "E4": "e4_robust",
    "E5": "e5_prior_shift",
    "E6": "e6_ragged",
    "E7": "e7_diagnostics",
    "E8": "e8_images",
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", metavar="E", help="such as E1; all by default")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, in another folder")
    parser.add_argument("--folder", type=pathlib.Path, help="where results go")
    options = parser.parse_args(arguments)
    unknown = set(options.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"unknown experiments {sorted(unknown)}, known are {list(EXPERIMENTS)}")
    folder = options.folder or HERE / ("quick" if options.quick else "results")
    if options.quick:  # nearly all of the time is spent compiling; read by JAX when it starts
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    sizes = (budget.quick if options.quick else budget.full)(folder)
    for name in options.experiments or EXPERIMENTS:
        start = time.perf_counter()
        importlib.import_module(EXPERIMENTS[name]).run(sizes)
        print(f"{name} took {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
