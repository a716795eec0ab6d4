"""How an outer step grows with the devices: the work of each, what they exchange, a paper model.

    python benchmarks/scaling.py [--workloads W1 W2 W3] [--devices 1 2 4 8] [--repeats 5]
                                 [--parts growth rules model] [--output FILE]

On simulated CPU devices of one process. "Strong": the devices share a meta-batch; "weak": each
device has as many tasks, however many devices there are. Before anything is counted, the gradient
of each number of devices is compared with that of one, in float64 and on the smooth variant.

FLOPs and bytes are XLA's, of one device, for the step as it is lowered for a TPU, with all
tasks side by side and so without loops, whose bodies XLA would count once; on a CPU
convolutions are loops. Exchanges are read out of the same program. Seconds and time to compile
are those of the step as it runs here: with more devices than cores no measure of anything.

The rules of every level are counted on the first workload. `scaling_model.py` then works out the
time of a step on slices of TPUs: a model, not a measurement. Parts that are left out stay as the
file has them.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import maml_jax as mj
import report_table
import scaling_tables
import workloads
from maml_jax import benchmarking
from scaling_model import Work

NUM_TASKS = {"W1": 32, "W2": 8, "W3": 256}
TOLERANCE = 1e-12  # Float64, relative to the largest entry of the gradient.
COUNTS = (1, 2, 4, 8)
PARTS = ("growth", "rules", "model")
MODEL_DEVICES = 2  # Of the axis "model", in one more mesh.
RESULTS = pathlib.Path(__file__).parent / "results"
RULES = {
    "mean": {},
    "mean, masked": {"masked": True},
    "mean, skipping": {"on_nonfinite": "skip"},
    "tilted": {"aggregation": mj.aggregation.tilted(0.5)},
    "norm_clipped": {"aggregation": mj.aggregation.norm_clipped()},
    "upgrad": {"aggregation": mj.aggregation.upgrad()},
    "median": {"aggregation": mj.aggregation.median()},
}


def mesh_of(count, *, model=1):
    """Makes a mesh of the first devices; None for one."""
    devices = np.array(jax.devices()[:count])
    if count == 1:
        return None
    if model == 1:
        return Mesh(devices, ("tasks",))
    return Mesh(devices.reshape(-1, model), ("tasks", "model"))


def prepared(workload, mesh, *, masked=False, weighted=False, **options):
    """Builds an outer step on a mesh, and what it is called with, where it belongs."""
    outer = workload.outer(mesh=mesh, **{"on_nonfinite": "propagate", **options})
    tasks, state = workload.tasks, outer.init(workload.params)
    if mesh is not None:
        tasks = jax.device_put(tasks, NamedSharding(mesh, PartitionSpec("tasks")))
    numbers = jnp.arange(workload.num_tasks)
    more = {"mask": numbers > 0} if masked else {}
    more |= {"weights": 1.0 + numbers} if weighted else {}
    return outer, (state, tasks, more)


def for_tpu(name, num_tasks):
    """Makes a workload as it would be where TPUs are."""
    return workloads.make(name, num_tasks=num_tasks, statistics="outputs")


def counted(workload, mesh, **options):
    """Compiles an outer step as it is lowered for a TPU, with all tasks side by side."""
    outer, arguments = prepared(workload, mesh, task_axis="vmap", **options)
    step = jax.jit(lambda state, tasks, more: outer.update(state, tasks, **more))
    anywhere = [export.DisabledSafetyCheck.platform()]
    lowered = export.export(step, platforms=("tpu",), disabled_checks=anywhere)(*arguments)
    return jax.jit(lowered.call).lower(*arguments).compile()


@functools.cache
def plain_flops(name):
    """Counts the FLOPs of one task in plain JAX, with `lax.conv`."""
    workload = workloads.make(name, num_tasks=1)
    one = jax.tree.map(lambda leaf: leaf[0], workload.tasks)
    gradient = jax.grad(workloads.naive_task_loss(workload))
    return benchmarking.cost(gradient, workload.params, one).flops


def timed(workload, mesh, repeats):
    """Compiles the outer step as it runs here, and times it."""
    outer, (state, tasks, _) = prepared(workload, mesh)
    began = time.perf_counter()
    step = jax.jit(outer.update).lower(state, tasks).compile()
    compile_seconds = time.perf_counter() - began
    benchmarking.timed(lambda: step(state, tasks))
    seconds = [benchmarking.timed(lambda: step(state, tasks)) for _ in range(repeats)]
    return {"compile_seconds": compile_seconds, "seconds": statistics.median(seconds)}


def gradient(workload, mesh):
    """Computes the gradient of the meta-batch as it runs here."""
    outer, (state, tasks, _) = prepared(workload, mesh)
    return jax.device_get(outer.gradient(state, tasks)[0])


def checked(name, num_tasks, meshes):
    """Compares the gradient on each mesh with that of one device; gives the relative errors."""
    errors = {}
    with jax.enable_x64(True):
        smooth = in_float64(workloads.make(name, num_tasks=num_tasks, smooth=True))
        want = gradient(smooth, None)
        for key, mesh in meshes.items():
            got = want if mesh is None else gradient(smooth, mesh)
            errors[key] = benchmarking.relative_error(got, want)
            print(f"{name} on {key} devices: relative error {errors[key]:.1e}", flush=True)
            if not errors[key] < TOLERANCE:
                sys.exit(f"{name} on {key} devices: another gradient.")
    return errors


def in_float64(workload):
    """Gives a workload whose parameters and tasks are in float64."""

    def wide(tree):
        return jax.tree.map(
            lambda a: a.astype(float) if jnp.isdtype(a.dtype, "real floating") else a, tree
        )

    return dataclasses.replace(workload, params=wide(workload.params), tasks=wide(workload.tasks))


def totals(found):
    """Adds up exchanges: by kind, and what each device sends over each axis of the mesh."""
    kinds = {}
    for exchange in found:
        if exchange.devices > 1:
            of_kind = kinds.setdefault(exchange.kind, {"count": 0, "elements": 0, "bytes": 0})
            of_kind["count"] += 1
            of_kind["elements"] += exchange.elements
            of_kind["bytes"] += exchange.num_bytes
    return kinds


def facts(compiled):
    """Gives what is known of a compiled step of one device."""
    cost = benchmarking.cost_of(compiled)
    found = benchmarking.exchanges(compiled.as_text())
    sent = {}
    for exchange in found:
        sent[exchange.devices] = sent.get(exchange.devices, 0) + exchange.sent_bytes
    return {
        **cost._asdict(),
        "argument_bytes": compiled.memory_analysis().argument_size_in_bytes,
        "exchanges": totals(found),
        "sent_bytes": sum(sent.values()),
        "sent_bytes_among": {str(count): num_bytes for count, num_bytes in sorted(sent.items())},
    }


def grow(name, counts, repeats):
    """Measures one workload on every number of devices; gives its rows."""
    num_tasks = NUM_TASKS[name]
    meshes = {count: mesh_of(count) for count in counts}
    errors = checked(name, num_tasks, meshes)

    @functools.cache
    def row(count, total):
        measured = facts(counted(for_tpu(name, total), meshes[count]))
        plain = plain_flops(name) * total / count
        workload = workloads.make(name, num_tasks=total)
        return {**measured, "plain_flops": plain, **timed(workload, meshes[count], repeats)}

    rows = []
    for scaling in ("strong", "weak"):
        for count in counts:
            total = num_tasks if scaling == "strong" else num_tasks // max(counts) * count
            print(f"{name} {scaling}: {count} devices, {total} tasks", flush=True)
            settings = {"workload": name, "scaling": scaling, "devices": count, "num_tasks": total}
            rows.append({**settings, **row(count, total), "relative_error": errors[count]})
    return rows


def work_of(row, reached):
    """Gives the model's works of what the TPU compiler said of a program, if it is one of them."""
    if row["task_axis"] != "vmap" or row["model"] > 1 or row["chips"] == "v5e-8":
        return []
    workload = workloads.make(row["workload"], num_tasks=row["tasks_per_chip"])
    leaves = jax.tree.leaves(workload.params)
    _, metrics = jax.eval_shape(workload.outer().update, *prepared(workload, None)[1][:2])
    own = {"grad_norm", "n_valid", "n_nonfinite", "effective_tasks", "side_by_side"}
    work = Work(
        name=workload.name,
        bound=row["activations"],
        kind=row["chips"].split("-")[0],
        flops=row["flops"] / workload.num_tasks,
        num_bytes=row["bytes_accessed"] / workload.num_tasks,
        num_params=sum(leaf.size for leaf in leaves),
        num_leaves=len(leaves),
        reported=len(metrics.keys() - own),
        efficiency=reached[workload.name],
    )
    if work.bound != "float32":
        return [work]
    return [work, dataclasses.replace(work, bound="only products", num_bytes=0.0)]


def modelled():
    """Works the model out from what the other programs wrote."""
    results = {}
    for name in ("throughput", "tpu_compile"):
        path = RESULTS / f"{name}.json"
        if not path.exists():
            sys.exit(f"the model needs results/{name}.json: run {name}.py first.")
        results[name] = json.loads(path.read_text())["results"]
    reached = {}
    for row in results["throughput"]:
        fraction = max(row["roof_fraction"], reached.get(row["workload"], 0))
        reached[row["workload"]] = fraction
    works = [work for row in results["tpu_compile"] for work in work_of(row, reached)]
    return scaling_tables.model(works)


def levels(name, counts):
    """Counts what a rule of each level exchanges, on each number of devices and on two axes."""
    workload = for_tpu(name, NUM_TASKS[name])
    meshes = {str(count): mesh_of(count) for count in counts if count > 1}
    most = max(counts)
    if most >= 2 * MODEL_DEVICES:
        shape = f"{most // MODEL_DEVICES}x{MODEL_DEVICES}"
        meshes[shape] = mesh_of(most, model=MODEL_DEVICES)
        checked(name, NUM_TASKS[name], {shape: meshes[shape]})
    rows = []
    for rule, options in RULES.items():
        for shape, mesh in meshes.items():
            print(f"{name} {rule}: {shape} devices", flush=True)
            level = mj.aggregation.resolve(options.get("aggregation", "mean")).level.name
            settings = {"rule": rule, "level": level, "devices": shape}
            settings |= {"workload": workload.name, "num_tasks": workload.num_tasks}
            rows.append({**settings, **facts(counted(workload, mesh, **options))})
    return rows


def kept(path, content):
    """Writes results beside those that the file has already; gives all of them."""
    old = json.loads(path.read_text()) if path.exists() else {}
    for part in ("results", "rules"):
        new = content.get(part, [])
        names = {row["workload"] for row in new}
        rest = [row for row in old.get(part, []) if row["workload"] not in names]
        both = rest + new if part == "results" else new or rest
        content[part] = sorted(both, key=lambda row: row["workload"])
    if "model" in old:
        content.setdefault("model", old["model"])
    report_table.write(path, content)
    return content


def main():
    """Measures, prints the tables, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = {"nargs": "+", "choices": list(NUM_TASKS), "default": list(NUM_TASKS)}
    parser.add_argument("--workloads", **every)
    counts = {"nargs": "+", "type": int, "choices": COUNTS, "default": COUNTS}
    parser.add_argument("--devices", **counts)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--output", type=pathlib.Path, default=RESULTS / "scaling.json")
    options = parser.parse_args()
    counts = sorted({1, *options.devices})
    jax.config.update("jax_num_cpu_devices", counts[-1])
    if "growth" in options.parts:
        for name in options.workloads:
            kept(options.output, {"results": grow(name, counts, options.repeats)})
    if "rules" in options.parts:
        kept(options.output, {"rules": levels(options.workloads[0], counts)})
    content = kept(options.output, {"model": modelled()} if "model" in options.parts else {})
    scaling_tables.show(content)


if __name__ == "__main__":
    main()
