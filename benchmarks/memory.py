"""Temporary memory of one outer gradient against inner steps, by mode of differentiation.

    python benchmarks/memory.py [--workloads W2] [--inner-steps 1 5 20 100 200] [--output FILE]

XLA's own count of the compiled program; nothing is run. Time to compile comes with it,
without any cache.
"""

import argparse
import pathlib
import time

import jax

import report_table
import workloads

MODES = {
    "reverse": {},
    "reverse, remat": {"remat": True},
    "mixed": {"differentiate": "mixed"},
    "first order": {"first_order": True},
}


def measure(name, num_tasks, num_steps, mode):
    """Compiles one program; gives its temporary bytes and the seconds it took."""
    workload = workloads.make(name, num_tasks=num_tasks)
    inner = workload.inner(num_steps=num_steps, **MODES[mode])
    outer = workload.outer(inner=inner, on_nonfinite="propagate")
    lowered = jax.jit(outer.gradient).lower(outer.init(workload.params), workload.tasks)
    began = time.perf_counter()
    compiled = lowered.compile()
    return {
        "compile_seconds": time.perf_counter() - began,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def main():
    """Compiles every combination, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W2"])
    parser.add_argument("--num-tasks", type=int, default=1)
    parser.add_argument("--inner-steps", nargs="+", type=int, default=[1, 5, 20, 100, 200])
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    default = pathlib.Path(__file__).parent / "results" / "memory.json"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    results, rows = [], []
    for name in options.workloads:
        for mode in options.modes:
            for num_steps in options.inner_steps:
                row = measure(name, options.num_tasks, num_steps, mode)
                settings = {"workload": name, "mode": mode, "num_steps": num_steps}
                results.append({**settings, "num_tasks": options.num_tasks, **row})
                mebibytes, seconds = row["temporary_bytes"] / 2**20, row["compile_seconds"]
                rows.append((name, mode, str(num_steps), f"{mebibytes:.0f}", f"{seconds:.1f}"))
                report_table.write(options.output, {"results": results})
    columns = ("", "mode", "inner steps", "MiB", "compile s")
    report_table.show("temporary memory of one outer gradient", rows, columns)


if __name__ == "__main__":
    main()
