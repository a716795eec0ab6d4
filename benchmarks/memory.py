"""Temporary memory of one outer gradient against inner steps, by mode of differentiation.

    python benchmarks/memory.py [--workloads W2] [--inner-steps 1 5 20 100 200] [--output FILE]

XLA's own count of the compiled program; nothing is run.
"""

import argparse
import pathlib

import report_table
import workloads


def measure(name, num_tasks, num_steps, mode):
    """Compiles one program; gives its temporary bytes."""
    lowered = workloads.lowered_gradient(name, num_tasks, num_steps, mode)
    return lowered.compile().memory_analysis().temp_size_in_bytes


def main():
    """Compiles every combination, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W2"])
    parser.add_argument("--num-tasks", type=int, default=1)
    parser.add_argument("--inner-steps", nargs="+", type=int, default=[1, 5, 20, 100, 200])
    modes = list(workloads.MODES)
    parser.add_argument("--modes", nargs="+", choices=modes, default=modes)
    default = pathlib.Path(__file__).parent / "results" / "memory.json"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    options = parser.parse_args()
    results, rows = [], []
    for name in options.workloads:
        for mode in options.modes:
            for num_steps in options.inner_steps:
                temporary = measure(name, options.num_tasks, num_steps, mode)
                settings = {"workload": name, "mode": mode, "num_steps": num_steps}
                counted = {"num_tasks": options.num_tasks, "temporary_bytes": temporary}
                results.append({**settings, **counted})
                rows.append((name, mode, str(num_steps), f"{temporary / 2**20:.0f}"))
                report_table.write(options.output, {"results": results})
    columns = ("", "mode", "inner steps", "MiB")
    report_table.show("temporary memory of one outer gradient", rows, columns)


if __name__ == "__main__":
    main()
