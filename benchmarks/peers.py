"""Ours against the peers: one outer gradient of W1, W2 and W3, alternating in one run.

    python benchmarks/peers.py [--workloads W1 W2 W3] [--peers ...] [--repeats 7]
                               [--environments FOLDER] [--output FILE]

Each peer runs from its released package in a virtual environment of its own, made on the first
run in FOLDER, as a process that waits while another is measured. A peer that cannot be installed
or does not run is in the table with the reason. Before anything is timed, each peer's
gradient is compared with ours on the smooth variant of the workload.

Ours shares the tasks over all CPU cores, as `maml-jax train` does.

On W3 a whole outer step is timed, 500 in a row: ours by `run_outer_steps`, which samples new
tasks and applies Adam; naive JAX with Adam, on given tasks, 50 where it loops over them. Of
packages, nothing but the gradient for given tasks is asked. On W1 and W2 such steps of ours, a
few in a row on tasks drawn from those given, are one row more.
"""

import argparse
import contextlib
import functools
import pathlib

import jax
import numpy as np
import optax

import maml_jax as mj
import report_table
import workloads
from maml_jax import benchmarking, devices
from maml_jax.layout import mesh_for
from peer_process import PEERS, PeerError, PeerProcess

NAIVE = {"naive_vmap": workloads.naive_gradient, "naive_loop": workloads.naive_loop}
COMPILED = ("naive_vmap",)  # In one piece: a Python loop over tasks cannot be.
NUM_TASKS = {"W1": [32], "W2": [4], "W3": [25, 256]}
NUM_STEPS = {"W1": 4, "W2": 4, "W3": 500}  # Of ours in one call; W3's of a compiled peer's too.
LOOP_STEPS = 50  # Of a Python loop over tasks, which takes a hundred times as long.
TOLERANCE = 1e-3  # Float32, second order, relative to the largest entry of the gradient.


def our_outer(workload):
    """Builds our outer step as `maml-jax train` does, and its first state."""
    loss = functools.partial(mj.inner_loop.query_loss, workload.inner(), workload.loss_fn)
    mesh = mesh_for(loss, workload.params, workload.tasks, workload.num_tasks)
    outer = workload.outer(mesh=mesh, on_nonfinite="propagate")
    return outer, outer.init(workload.params)


def our_gradient(workload):
    """Prepares our outer gradient: `() -> gradient`."""
    outer, state = our_outer(workload)
    return lambda: outer.gradient(state, workload.tasks)[0]


def our_steps(workload):
    """Prepares outer steps with sampling, in one compiled call."""
    outer, state = our_outer(workload)
    sampler = workload.sampler
    if workload.name != "W3":
        sampler = jax.tree_util.Partial(one_of, workload.tasks)

    def steps():
        return mj.run_outer_steps(
            outer,
            sampler,
            state,
            jax.random.key(0),
            num_steps=NUM_STEPS[workload.name],
            meta_batch_size=workload.num_tasks,
        )

    return steps


def one_of(tasks, key):
    """Draws one of the given tasks, as from a data set on the device."""
    index = jax.random.randint(key, (), 0, len(tasks.support.targets))
    return jax.tree.map(lambda leaf: leaf[index], tasks)


def naive_steps(workload, peer):
    """Prepares outer steps of naive JAX on the same tasks: `() -> seconds` of one.

    Each is one compiled call, where it can be.
    """
    optimizer, gradient = optax.adam(1e-3), NAIVE[peer](workload)

    @jax.jit
    def update(grads, params, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    def step(params, opt_state):
        return update(gradient(params, workload.tasks), params, opt_state)

    step, count = (jax.jit(step), NUM_STEPS["W3"]) if peer in COMPILED else (step, LOOP_STEPS)

    def steps():
        carry = workload.params, optimizer.init(workload.params)
        for _ in range(count):
            carry = step(*carry)
        return carry

    return lambda: benchmarking.timed(steps) / count


def our_sides(workload):
    """Prepares what is timed of ours, by name: `() -> seconds` of one outer step or gradient."""
    call, count = our_steps(workload), NUM_STEPS[workload.name]

    def steps():
        return benchmarking.timed(call) / count

    if workload.name == "W3":
        return {"maml_jax": steps}
    gradient = our_gradient(workload)
    return {"maml_jax": lambda: benchmarking.timed(gradient), "maml_jax_steps": steps}


def naive_side(workload, peer):
    """Prepares what is timed of a form of naive JAX, in the same way."""
    if workload.name == "W3":
        return naive_steps(workload, peer)
    gradient = NAIVE[peer](workload)
    return lambda: benchmarking.timed(lambda: gradient(workload.params, workload.tasks))


def make_sides(options, name, num_tasks):
    """Prepares every peer that runs and agrees with us; gives the reasons of the others."""
    smooth = workloads.make(name, num_tasks=num_tasks, smooth=True)
    workload = workloads.make(name, num_tasks=num_tasks)
    want = flat(our_gradient(smooth)())
    sides, errors, failures, processes = our_sides(workload), {}, {}, []
    for side in sides.values():
        side()  # Compiles.
    for peer in options.peers:
        try:
            if peer in NAIVE:
                got = flat(NAIVE[peer](smooth)(smooth.params, smooth.tasks))
                side = naive_side(workload, peer)
            else:
                with contextlib.closing(PeerProcess(peer, smooth, options.environments)) as check:
                    got = check.gradient()
                processes.append(PeerProcess(peer, workload, options.environments))
                side = processes[-1].run
            errors[peer] = benchmarking.relative_error(got, want)
            if not errors[peer] < TOLERANCE:
                raise PeerError(f"another gradient: relative error {errors[peer]:.1e}")
            side()
            sides[peer] = side
        except (PeerError, jax.errors.JaxRuntimeError) as error:
            failures[peer] = str(error).splitlines()[0][:300]
            print(f"{name} {peer}: {failures[peer]}", flush=True)
    return sides, errors, failures, processes


def flat(tree):
    """Gives a tree as a flat dict of arrays, named as `workloads.arrays` does."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def compare(options, name, num_tasks):
    """Measures one workload; returns what goes into the JSON file."""
    sides, errors, failures, processes = make_sides(options, name, num_tasks)
    timings = benchmarking.alternate(sides, repeats=options.repeats)
    for process in processes:
        process.close()
    ours = timings["maml_jax"].median
    rows = [
        {
            "peer": side,
            **timing.as_dict(),
            "ratio": timing.median / ours,
            "relative_error": errors.get(side),
        }
        for side, timing in timings.items()
    ]
    rows.sort(key=lambda row: row["median"])
    facts = {process.peer: process.facts for process in processes}
    settings = {"workload": name, "num_tasks": num_tasks}
    return {**settings, "rows": rows, "failed": failures, "peers": facts}


def main():
    """Measures, prints a table for each workload, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--peers", nargs="+", default=[*NAIVE, *PEERS])
    parser.add_argument("--num-tasks", nargs="+", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=7)
    here = pathlib.Path(__file__).parent
    parser.add_argument("--environments", type=pathlib.Path, default=here / "environments")
    parser.add_argument("--output", type=pathlib.Path, default=here / "results" / "peers.json")
    options = parser.parse_args()
    devices.use_cpu_cores()
    results = []
    for name in options.workloads:
        for num_tasks in options.num_tasks or NUM_TASKS[name]:
            result = compare(options, name, num_tasks)
            results.append(result)
            report_table.show(
                f"{name}, {num_tasks} tasks, ms",
                [
                    (
                        row["peer"],
                        f"{1e3 * row['median']:.2f}",
                        " - ".join(f"{1e3 * value:.2f}" for value in row["quartiles"]),
                        f"{row['ratio']:.2f}",
                    )
                    for row in result["rows"]
                ],
                ("", "median", "quartiles", "times ours"),
            )
            report_table.write(options.output, {"results": results})


if __name__ == "__main__":
    main()
