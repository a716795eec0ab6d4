"""What the TPU compiler makes of our outer step, on a machine without a TPU.

    python benchmarks/tpu_compile.py [--workloads W1 W2] [--output FILE]

Compiles one outer step, with Adam, for v5e with 1 and 8 chips and v6e with 4, and records what the
compiler says of each chip's program: memory, FLOPs, bytes, exchanges, seconds to compile. It is the
compiler that a real TPU has, `libtpu`; nothing is run, so there are no times of a step. A program
that does not fit a chip's memory is an error of the compiler, and ends this one.

It needs `jax[tpu]`, which is 684 MB: an environment of its own is made under `environments/` on the
first run. All of it takes about 20 minutes on two cores, nearly all of that for W2.

FLOPs and bytes count the body of a loop once; unless tasks run in chunks, there is none. Sizes of
exchanges are those of the result on each chip.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import time

# Before JAX starts: no question to the metadata server of Google Cloud, for there is none here;
# arrays stay on the CPU, for only programs are for TPUs; other processes may compile too.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import report_table
import workloads
from maml_jax import benchmarking, layout, placement
from maml_jax.chunks import chunk_size
from maml_jax.inner_loop import query_loss

HERE = pathlib.Path(__file__).resolve().parent
ENVIRONMENT = HERE / "environments" / "tpu"

GIB = 2**30
# Topology by name, and the memory of a chip that the compiler lets a program have.
CHIPS = {
    "v5e-1": ("v5e:1x1", {"chips_per_host_bounds": (1, 1, 1)}, 15.75 * GIB),
    "v5e-8": ("v5e:2x4", {"chips_per_host_bounds": (2, 4, 1)}, 15.75 * GIB),
    "v6e-4": ("v6e:2x2", {}, 31.25 * GIB),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One program to compile.

    `model` is the size of the mesh's axis "model": so many chips then share the tasks of one.
    """

    workload: str
    chips: str
    tasks_per_chip: int
    task_axis: str = "vmap"
    activations: str = "float32"
    model: int = 1


CASES = [
    Case(workload="W1", chips="v5e-1", tasks_per_chip=32),
    Case(workload="W1", chips="v5e-1", tasks_per_chip=32, activations="bfloat16"),
    Case(workload="W1", chips="v5e-1", tasks_per_chip=336, task_axis="auto"),
    Case(workload="W1", chips="v5e-8", tasks_per_chip=32),
    Case(workload="W1", chips="v5e-8", tasks_per_chip=32, model=2),
    Case(workload="W1", chips="v6e-4", tasks_per_chip=32),
    Case(workload="W2", chips="v5e-1", tasks_per_chip=4),
    Case(workload="W2", chips="v5e-1", tasks_per_chip=4, activations="bfloat16"),
    Case(workload="W2", chips="v5e-1", tasks_per_chip=16, task_axis="auto"),
    Case(workload="W2", chips="v5e-8", tasks_per_chip=4),
    Case(workload="W2", chips="v6e-4", tasks_per_chip=4),
]


def mesh_of(chips, model=1):
    """Makes a mesh of chips that are not here."""
    name, options, _ = CHIPS[chips]
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    devices = np.array(topology.devices)
    if model == 1:
        return Mesh(devices, ("tasks",))
    return Mesh(devices.reshape(-1, model), ("tasks", "model"))


def side_by_side(case, workload, tasks, num_tasks):
    """Says how many tasks run at once: for "auto" what it would choose on such a chip."""
    if case.task_axis != "auto":
        return case.task_axis
    loss = functools.partial(query_loss, workload.inner(), workload.loss_fn)
    # A chip that is not here does not tell its memory, so `layout_of` cannot be asked.
    memory = CHIPS[case.chips][2]
    fit = layout.tasks_in_memory(loss, workload.params, tasks, "tpu", memory)
    return chunk_size(num_tasks, fit)


def lowered(case, **sizes):
    """Traces the outer step of a case from shapes; nothing is put on a chip."""
    mesh = mesh_of(case.chips, case.model)
    dtype = jnp.bfloat16 if case.activations == "bfloat16" else None
    workload = workloads.make(
        case.workload, num_tasks=1, dtype=dtype, statistics="outputs", **sizes
    )
    shards = mesh.shape["tasks"]
    num_tasks = case.tasks_per_chip * shards

    def shape(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def share(leaf):
        several = jax.ShapeDtypeStruct((num_tasks, *leaf.shape[1:]), leaf.dtype)
        return shape(several, NamedSharding(mesh, PartitionSpec("tasks")))

    tasks = jax.tree.map(share, workload.tasks)
    axis = side_by_side(case, workload, tasks, case.tasks_per_chip)
    state = jax.eval_shape(workload.outer().init, workload.params)
    state = jax.tree.map(shape, state, placement._shardings(state, mesh, ("model",)))
    outer = workload.outer(mesh=mesh, task_axis=axis)
    count = case.tasks_per_chip if axis == "vmap" else axis
    return jax.jit(outer.update).lower(state, tasks), count


def measure(case, **sizes):
    """Compiles a case; gives its row for the JSON file."""
    trace, count = lowered(case, **sizes)
    began = time.monotonic()
    compiled = trace.compile()
    seconds = time.monotonic() - began
    memory = compiled.memory_analysis()
    flops, num_bytes = benchmarking.cost_of(compiled)
    exchanged = benchmarking.exchanges(compiled.as_text())
    return {
        **dataclasses.asdict(case),
        "side_by_side": count,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "available_bytes": int(CHIPS[case.chips][2]),
        "flops": flops,
        "bytes_accessed": num_bytes,
        "exchanges": [{**one._asdict(), "sent_bytes": one.sent_bytes} for one in exchanged],
        "compile_seconds": seconds,
    }


def row_of(result):
    """Makes the row of the table."""
    kinds = {}
    for one in result["exchanges"]:
        count, num_bytes = kinds.get(one["kind"], (0, 0))
        kinds[one["kind"]] = count + 1, num_bytes + one["num_bytes"]
    shown = [f"{count} {kind} {size / 1e3:,.0f} kB" for kind, (count, size) in kinds.items()]
    what = "tasks" if result["model"] == 1 else f"tasks x {result['model']} model"
    return (
        f"{result['workload']} {result['chips']}",
        what,
        result["activations"],
        f"{result['tasks_per_chip']} ({result['side_by_side']})",
        f"{result['temporary_bytes'] / GIB:.2f} of {result['available_bytes'] / GIB:.2f}",
        f"{result['flops'] / 1e9:,.0f}",
        f"{result['bytes_accessed'] / 1e9:,.1f}",
        f"{result['compile_seconds']:.0f}",
        "; ".join(shown) or "none",
    )


HEADINGS = (
    "",
    "mesh",
    "activations",
    "tasks a chip (at once)",
    "temporary GiB",
    "GFLOP",
    "GB",
    "s to compile",
    "exchanges",
)


def in_own_environment():
    """Runs this program again where `libtpu` is, after making that environment."""
    python = ENVIRONMENT / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == ENVIRONMENT.resolve():
        sys.exit("error: libtpu is not in its environment; remove it, and run this again.")
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    wanted = [f"jax[tpu]=={jax.__version__}", "-e", str(HERE.parent)]
    subprocess.run([str(python), "-m", "pip", "install", "-q", *wanted], check=True)
    sys.exit(subprocess.run([str(python), *sys.argv], check=False).returncode)


def main():
    """Compiles, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="*", default=["W1", "W2"])
    parser.add_argument("--output", type=pathlib.Path, default=HERE / "results/tpu_compile.json")
    options = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        in_own_environment()
    results, libtpu = [], importlib.metadata.version("libtpu")
    for case in CASES:
        if case.workload in options.workloads:
            print(case, flush=True)
            results.append(measure(case))
            report_table.write(options.output, {"libtpu": libtpu, "results": results})
    rows = [row_of(result) for result in results]
    report_table.show("one outer step, each chip's program", rows, HEADINGS)


if __name__ == "__main__":
    main()
