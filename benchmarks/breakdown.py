"""Where the time of one outer gradient goes on one CPU core: products, and what is between them.

    python benchmarks/breakdown.py [--workloads W1 W2] [--repeats 5] [--output FILE]

From XLA's own trace of every operation. "At the rate" is what the matrix products would take at
the rate of a 4096 x 4096 product, measured in the same run: FLOPs as `throughput.py` counts them.
"""

import argparse
import collections
import gzip
import json
import os
import pathlib
import re
import statistics
import tempfile

import jax

import report_table
import workloads
from maml_jax import benchmarking

NUM_TASKS = {"W1": 4, "W2": 1, "W3": 25}
MOVES = {"copy", "bitcast", "pad", "slice", "concatenate", "transpose", "broadcast"}
MOVES |= {"dynamic-slice", "dynamic-update-slice"}
KINDS = ("products", "copies and patches", "sums", "elementwise")


def kinds(program):
    """Tells for each operation of a compiled program, by name, what kind it is."""
    bodies = re.split(r"\n(?=%|ENTRY)", program)
    body_of = {body.split(" ", 1)[0]: body for body in bodies}
    found = {}
    for name, line in re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$", program, re.MULTILINE):
        called = re.search(r"calls=(%[\w.\-]+)", line)
        text = body_of.get(called.group(1), "") if called else line
        # XLA names a fusion by what is in it, such as "pad_slice_fusion.7".
        words = set(re.sub(r"[.\d]+$", "", name).split("_")) - {"fusion", "wrapped"}
        if re.search(r" (dot|convolution)\(", text):
            found[name] = "products"
        elif " reduce(" in text:
            found[name] = "sums"
        else:
            found[name] = "copies and patches" if words and words <= MOVES else "elementwise"
    return found


def traced(call):
    """Runs a call under the profiler; gives the seconds of each operation by name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = pathlib.Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    seconds = collections.Counter()
    for event in events:
        name = event.get("args", {}).get("hlo_op")
        if event.get("ph") == "X" and name and not name.startswith(("while", "call")):
            seconds[name] += event["dur"] / 1e6
    return seconds


def measure(name, repeats):
    """Measures one workload; returns seconds per task."""
    num_tasks = NUM_TASKS[name]
    workload = workloads.make(name, num_tasks=num_tasks)
    outer = workload.outer(on_nonfinite="propagate")
    arguments = outer.init(workload.params), workload.tasks
    compiled = jax.jit(outer.gradient).lower(*arguments).compile()
    sides = {
        "whole": lambda: benchmarking.timed(lambda: compiled(*arguments)),
        "product": benchmarking.product_rate(),
    }
    sides["whole"]()
    timings = benchmarking.alternate(sides, repeats=repeats)
    one = jax.tree.map(lambda leaf: leaf[0], workload.tasks)
    naive = jax.grad(workloads.naive_task_loss(workload))
    flops = benchmarking.cost(naive, workload.params, one).flops
    kind_of, parts = kinds(compiled.as_text()), collections.defaultdict(list)
    for _ in range(repeats):
        total = dict.fromkeys(KINDS, 0.0)
        for operation, seconds in traced(lambda: compiled(*arguments)).items():
            total[kind_of.get(operation, "elementwise")] += seconds / num_tasks
        for kind, seconds in total.items():
            parts[kind].append(seconds)
    return {
        "workload": name,
        "whole": timings["whole"].median / num_tasks,
        "at_the_rate": flops * timings["product"].median / benchmarking.PRODUCT_FLOPS,
        **{kind: statistics.median(values) for kind, values in parts.items()},
    }


def main():
    """Measures every workload, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=list(NUM_TASKS), default=["W1", "W2"])
    parser.add_argument("--repeats", type=int, default=5)
    default = pathlib.Path(__file__).parent / "results" / "breakdown.json"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # On several cores operations overlap.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    results = [measure(name, options.repeats) for name in options.workloads]
    report_table.write(options.output, {"results": results})
    names = ("whole", "at_the_rate", *KINDS)
    rows = [(row["workload"], *(f"{1e3 * row[name]:.1f}" for name in names)) for row in results]
    columns = ("ms per task", "whole", "at the rate", *KINDS)
    report_table.show("where an outer gradient's time goes, one core", rows, columns)


if __name__ == "__main__":
    main()
