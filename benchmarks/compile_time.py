"""Seconds to compile one outer gradient, against inner steps and mode of differentiation.

    python benchmarks/compile_time.py [--workloads W2] [--inner-steps 1 5 20 100] [--output FILE]

"Again" is the same compilation when JAX's persistent cache has its result, as in the second
run of a script that sets `jax_compilation_cache_dir`.
"""

import argparse
import pathlib
import tempfile
import time

import jax

import report_table
import workloads


def measure(*case):
    """Compiles one program with an empty cache, then with its own result in it."""
    seconds = []
    for _ in range(2):
        jax.clear_caches()
        began = time.perf_counter()
        lowered = workloads.lowered_gradient(*case)
        traced = time.perf_counter()
        lowered.compile()
        seconds.append((traced - began, time.perf_counter() - traced))
    (trace, compile_), (_, again) = seconds
    return {"trace_seconds": trace, "compile_seconds": compile_, "again_seconds": again}


def main():
    """Compiles every combination, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W2"])
    parser.add_argument("--num-tasks", type=int, default=4)
    parser.add_argument("--inner-steps", nargs="+", type=int, default=[1, 5, 20, 100])
    modes = list(workloads.MODES)
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    default = pathlib.Path(__file__).parent / "results" / "compile_time.json"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    options = parser.parse_args()
    results, rows = [], []
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for name in options.workloads:
            for mode in options.modes:
                for num_steps in options.inner_steps:
                    row = measure(name, options.num_tasks, num_steps, mode)
                    settings = {"workload": name, "mode": mode, "num_steps": num_steps}
                    results.append({**settings, "num_tasks": options.num_tasks, **row})
                    seconds = (f"{value:.1f}" for value in row.values())
                    rows.append((name, mode, str(num_steps), *seconds))
                    report_table.write(options.output, {"results": results})
    columns = ("", "mode", "inner steps", "trace s", "compile s", "again s")
    report_table.show("time to the first outer gradient", rows, columns)


if __name__ == "__main__":
    main()
