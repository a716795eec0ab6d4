"""Ours against the peers: one outer gradient of W1, W2 and W3, alternating in one run.

    python benchmarks/peers.py [--workloads W1 W2 W3] [--peers ...] [--repeats 7]
                               [--environments FOLDER] [--output FILE]

Each PyTorch peer runs in a virtual environment of its own, made on the first run in
FOLDER, as a process that waits while another is measured. A peer that cannot be installed
or does not run is in the table with the reason. Before anything is timed, each peer's
gradient is compared with ours on the smooth variant of the workload.

Ours shares the tasks over all CPU cores, as `maml-jax train` does.

On W3 a whole outer step is timed, 100 in a row: ours by `run_outer_steps`, which samples new
tasks and applies Adam; naive JAX with Adam, on given tasks. Of PyTorch, nothing but the
gradient for given tasks is asked.
"""

import argparse
import functools
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import optax

import maml_jax as mj
import report_table
import workloads
from maml_jax import benchmarking, devices

TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "torch": [TORCH],
    "higher": [TORCH, "higher==0.2.1"],
    "learn2learn": [TORCH, "learn2learn"],
    "torchopt": [TORCH, "torchopt"],
}
TORCH_PEERS = {
    "loop": "torch",
    "func_loop": "torch",
    "func_loop_compiled": "torch",
    "func_vmap": "torch",
    "func_vmap_compiled": "torch",
    "higher": "higher",
    "learn2learn": "learn2learn",
    "torchopt": "torchopt",
}
JAX_PEERS = {"naive_vmap": workloads.naive_gradient, "naive_loop": workloads.naive_loop}
NUM_TASKS = {"W1": [32], "W2": [4], "W3": [25, 256]}
NUM_STEPS = 100  # In a row, where a step is too short to be timed alone.
TOLERANCE = 1e-3  # Float32, second order, relative to the largest entry of the gradient.


class PeerError(Exception):
    """A peer cannot be installed, does not run, or computes something else."""


class TorchPeer:
    """A process that computes gradients when asked."""

    def __init__(self, python, peer, workload, tf32=False):
        self.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self.folder.name) / "workload.npz"
        np.savez(path, **workloads.arrays(workload), settings=json.dumps(settings(workload, tf32)))
        side = pathlib.Path(__file__).parent / "torch_side.py"
        self.errors = open(pathlib.Path(self.folder.name) / "errors", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, side, peer, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.facts = json.loads(self._read())

    def gradient(self):
        """Gives the gradient as a flat dict of arrays."""
        path = pathlib.Path(self.folder.name) / "gradient.npz"
        self._ask(f"gradient {path}")
        with np.load(path) as file:
            return {name: file[name] for name in file.files}

    def run(self):
        """Computes a gradient; returns the seconds it took."""
        return float(self._ask("run"))

    def close(self):
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.errors.close()
        self.folder.cleanup()

    def _ask(self, line):
        print(line, file=self.process.stdin, flush=True)
        return self._read()

    def _read(self):
        line = self.process.stdout.readline().strip()
        if line:
            return line
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        raise PeerError(lines[-1][:300] if lines else f"exit code {self.process.returncode}")


def settings(workload, tf32):
    """What a PyTorch peer must know besides the arrays."""
    return {
        "name": workload.name,
        "num_steps": workload.num_steps,
        "learning_rate": workload.learning_rate,
        "smooth": workload.smooth,
        "tf32": tf32,
    }


@functools.cache
def python_of(environment, folder):
    """Makes a virtual environment if it is not there; returns its Python."""
    python = folder / environment / "bin" / "python"
    ready = folder / environment / "ready"
    if not ready.exists():
        commands = [[sys.executable, "-m", "venv", folder / environment]]
        for package in (*ENVIRONMENTS[environment], "numpy"):
            commands.append([python, "-m", "pip", "install", "-q", package])
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
                raise PeerError(f"cannot be installed: {(lines or ['no reason given'])[0][:200]}")
        ready.touch()
    return python


def our_outer(workload):
    """Builds our outer step as `maml-jax train` does, and its first state."""
    mesh = devices.task_mesh(workload.num_tasks) if workload.name != "W3" else None
    outer = workload.outer(mesh=mesh, on_nonfinite="propagate")
    return outer, outer.init(workload.params)


def our_gradient(workload):
    """Prepares our outer gradient: `() -> gradient`."""
    outer, state = our_outer(workload)
    return lambda: outer.gradient(state, workload.tasks)[0]


def our_steps(workload):
    """Prepares outer steps with sampling, in one compiled call."""
    outer, state = our_outer(workload)

    def steps():
        return mj.run_outer_steps(
            outer,
            workload.sampler,
            state,
            jax.random.key(0),
            num_steps=NUM_STEPS,
            meta_batch_size=workload.num_tasks,
        )

    return steps


def naive_steps(workload, gradient):
    """Prepares outer steps of naive JAX on the same tasks; one compiled call each, if it can be."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    def update(grads, params, opt_state):
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    def step(params, opt_state):
        return update(gradient(params, workload.tasks), params, opt_state)

    step = step if gradient.__name__ == "loop" else jax.jit(step)

    def steps():
        carry = workload.params, optimizer.init(workload.params)
        for _ in range(NUM_STEPS):
            carry = step(*carry)
        return carry

    return steps


def side_of(workload, gradient=None):
    """Prepares what is timed of JAX: `() -> seconds` of one outer step or gradient.

    Args:
      workload: the workload.
      gradient: of naive JAX; None is ours.
    """
    if workload.name == "W3":
        call = our_steps(workload) if gradient is None else naive_steps(workload, gradient)
        return lambda: benchmarking.timed(call) / NUM_STEPS
    if gradient is None:
        return functools.partial(benchmarking.timed, our_gradient(workload))
    return lambda: benchmarking.timed(lambda: gradient(workload.params, workload.tasks))


def make_sides(options, name, num_tasks):
    """Prepares every peer that runs and agrees with us; gives the reasons of the others."""
    smooth = workloads.make(name, num_tasks=num_tasks, smooth=True)
    workload = workloads.make(name, num_tasks=num_tasks)
    want = flat(our_gradient(smooth)())
    sides, errors, failures, peers = {"maml_jax": side_of(workload)}, {}, {}, []
    sides["maml_jax"]()
    for peer in options.peers:
        try:
            if peer in JAX_PEERS:
                gradient = JAX_PEERS[peer](smooth)
                got = flat(gradient(smooth.params, smooth.tasks))
                side = side_of(workload, JAX_PEERS[peer](workload))
            else:
                python = python_of(TORCH_PEERS[peer], options.environments)
                check = TorchPeer(python, peer, smooth)
                got = check.gradient()
                check.close()
                peers.append(TorchPeer(python, peer, workload))
                side = peers[-1].run
            errors[peer] = benchmarking.relative_error(got, want)
            if not errors[peer] < TOLERANCE:
                raise PeerError(f"another gradient: relative error {errors[peer]:.1e}")
            side()
            sides[peer] = side
        except PeerError as error:
            failures[peer] = str(error)
            print(f"{name} {peer}: {error}", flush=True)
    return sides, errors, failures, peers


def flat(tree):
    """Gives a tree as a flat dict of arrays, named as `workloads.arrays` does."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def compare(options, name, num_tasks):
    """Measures one workload; returns what goes into the JSON file."""
    sides, errors, failures, peers = make_sides(options, name, num_tasks)
    timings = benchmarking.alternate(sides, repeats=options.repeats)
    for peer in peers:
        peer.close()
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
    return {"workload": name, "num_tasks": num_tasks, "rows": rows, "failed": failures}


def main():
    """Measures, prints a table for each workload, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=["W1", "W2", "W3"])
    parser.add_argument("--peers", nargs="+", default=[*JAX_PEERS, *TORCH_PEERS])
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
