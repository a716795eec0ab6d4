"""Tasks per second of our outer gradient, and how far that is from what the machine can do.

    python benchmarks/throughput.py [--workloads W1] [--num-tasks 4 32] [--axes auto vmap scan]
                                    [--dtypes float32 bfloat16] [--ways 5] [--shots 1]
                                    [--inner-steps 1] [--devices 1]
                                    [--statistics auto inputs outputs] [--repeats 7]
                                    [--output FILE]

The roof is a 4096 x 4096 matrix product and a copy of 256 MiB, measured in the same run, in
turn with the workload. FLOPs and bytes are XLA's for one task in plain JAX, without loops and
with `lax.conv`, times the tasks: the least that has to be computed, and what its operations
read and write, which a cache may save.
"""

import argparse
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import report_table
import workloads
from maml_jax import benchmarking


def case(name, *, num_tasks, axis, dtype, way, shot, num_steps, devices, statistics):
    """Prepares one case: how to time it, its cost, and its program's temporary memory."""
    activations = None if dtype == "float32" else jnp.dtype(dtype)
    changes = {"way": way, "shot": shot, "dtype": activations, "statistics": statistics}
    changes = {} if name == "W3" else changes
    workload = workloads.make(name, num_tasks=num_tasks, num_steps=num_steps, **changes)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("tasks",)) if devices > 1 else None
    outer = workload.outer(task_axis=axis, mesh=mesh, on_nonfinite="propagate")
    state = outer.init(workload.params)
    compiled = jax.jit(outer.gradient).lower(state, workload.tasks).compile()
    memory = compiled.memory_analysis()
    one = jax.tree.map(lambda leaf: leaf[0], workload.tasks)
    cost = benchmarking.cost(jax.grad(workloads.naive_task_loss(workload)), workload.params, one)
    benchmarking.timed(lambda: compiled(state, workload.tasks))
    return {
        "seconds": lambda: benchmarking.timed(lambda: compiled(state, workload.tasks)),
        "flops": num_tasks * cost.flops,
        "num_bytes": num_tasks * cost.num_bytes,
        "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
    }


def measure(prepared, repeats):
    """Times one case in turn with the roof."""
    sides = {
        "case": prepared["seconds"],
        "product": benchmarking.product_rate(),
        "copy": benchmarking.copy_rate(),
    }
    timings = benchmarking.alternate(sides, repeats=repeats)
    seconds = timings["case"].median
    rate, roof = prepared["flops"] / seconds, benchmarking.PRODUCT_FLOPS / timings["product"].median
    moved, copied = (
        prepared["num_bytes"] / seconds,
        benchmarking.COPY_BYTES / timings["copy"].median,
    )
    return {
        **timings["case"].as_dict(),
        **{name: prepared[name] for name in ("flops", "num_bytes", "temporary_bytes")},
        "flops_per_second": rate,
        "product_flops_per_second": roof,
        "roof_fraction": rate / roof,
        "bytes_per_second": moved,
        "copy_bytes_per_second": copied,
        "copy_fraction": moved / copied,
    }


def main():
    """Measures every combination, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--num-tasks", nargs="+", type=int, default=[4, 32])
    parser.add_argument("--axes", nargs="+", default=["auto"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--ways", nargs="+", type=int, default=[5])
    parser.add_argument("--shots", nargs="+", type=int, default=[1])
    parser.add_argument("--inner-steps", nargs="+", type=int, default=[None])
    parser.add_argument("--devices", nargs="+", type=int, default=[1])
    parser.add_argument("--statistics", nargs="+", default=["auto"])
    parser.add_argument("--repeats", type=int, default=7)
    default = pathlib.Path(__file__).parent / "results" / "throughput.json"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    options = parser.parse_args()
    if max(options.devices) > 1:
        jax.config.update("jax_num_cpu_devices", max(options.devices))
    names = ("num_tasks", "axis", "dtype", "way", "shot", "num_steps", "devices", "statistics")
    results = []
    for name, *values in itertools.product(
        options.workloads,
        options.num_tasks,
        options.axes,
        options.dtypes,
        options.ways,
        options.shots,
        options.inner_steps,
        options.devices,
        options.statistics,
    ):
        settings = dict(zip(names, values, strict=True))
        settings["axis"] = int(settings["axis"]) if settings["axis"].isdigit() else settings["axis"]
        try:
            row = measure(case(name, **settings), options.repeats)
        except jax.errors.JaxRuntimeError as error:
            row = {"failed": str(error).splitlines()[0][:200]}
        results.append({"workload": name, **settings, **row})
        report_table.write(options.output, {"results": results})
    columns = ("", *names, "ms", "tasks/s", "GFLOP/s", "of products", "of copies", "MiB")
    report_table.show("outer gradients", [line(row, names) for row in results], columns)


def line(row, names):
    """Formats one result."""
    settings = [row["workload"], *(str(row[name] or "") for name in names)]
    if "failed" in row:
        return (*settings, row["failed"][:40], *[""] * 5)
    return (
        *settings,
        f"{1e3 * row['median']:.1f}",
        f"{row['num_tasks'] / row['median']:.0f}",
        f"{row['flops_per_second'] / 1e9:.0f}",
        f"{row['roof_fraction']:.0%}",
        f"{row['copy_fraction']:.0%}",
        f"{(row['temporary_bytes'] or 0) / 2**20:.0f}",
    )


if __name__ == "__main__":
    main()
