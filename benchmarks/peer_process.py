"""A peer from its released package, in an environment of its own, as a process that waits.

The environments are made on first use. A peer that cannot be installed, does not run, or
computes something else raises `PeerError`, which says why.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jax
import numpy as np

import workloads

TORCH = "torch==2.13.0"
ENVIRONMENTS = {
    "torch": [TORCH],
    "higher": [TORCH, "higher==0.2.1"],
    "learn2learn": [TORCH, "learn2learn==0.2.0"],
    "torchopt": [TORCH, "torchopt==0.7.3"],
    "jax_meta": ["jax==0.10.2", "jax-meta==1.0.3"],
    "torchjd": [TORCH, "torchjd[full]==0.18.0"],
}
OLD_PYTHON = {"learn2learn": "3.10"}  # Its C sources do not compile on a later one.
PEERS = {  # The program and the environment of each.
    "loop": ("torch_side.py", "torch"),
    "func_loop": ("torch_side.py", "torch"),
    "func_loop_compiled": ("torch_side.py", "torch"),
    "func_vmap": ("torch_side.py", "torch"),
    "func_vmap_compiled": ("torch_side.py", "torch"),
    "higher": ("torch_side.py", "higher"),
    "learn2learn": ("torch_side.py", "learn2learn"),
    "torchopt": ("torch_side.py", "torchopt"),
    "jax_meta": ("jax_meta_side.py", "jax_meta"),
}


class PeerError(Exception):
    """A peer cannot be installed, does not run, or computes something else."""


class PeerProcess:
    """A process that computes an outer gradient of a workload when asked."""

    def __init__(self, peer, workload, environments):
        self.peer = peer
        program, environment = PEERS[peer]
        python = python_of(environment, environments)
        self.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self.folder.name) / "workload.npz"
        np.savez(path, **workloads.arrays(workload), settings=json.dumps(settings(workload)))
        self.errors = open(pathlib.Path(self.folder.name) / "errors", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, pathlib.Path(__file__).parent / program, peer, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        try:
            self.facts = json.loads(self._read())
        except PeerError:
            self.close()
            raise

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
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()
        self.errors.close()
        self.folder.cleanup()

    def _ask(self, line):
        with contextlib.suppress(BrokenPipeError):  # It has ended; its errors say why.
            print(line, file=self.process.stdin, flush=True)
        return self._read()

    def _read(self):
        line = self.process.stdout.readline().strip()
        if line:
            return line
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines()
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
        reason = [f"exit code {self.process.returncode}", *lines[-1:], *errors[-1:]][-1]
        raise PeerError(reason[:300])


def settings(workload):
    """What a peer must know besides the arrays."""
    return {
        "name": workload.name,
        "num_steps": workload.num_steps,
        "learning_rate": workload.learning_rate,
        "smooth": workload.smooth,
        # JAX's own default on a GPU with such cores; a CPU knows no TF32.
        "tf32": jax.config.jax_default_matmul_precision not in ("highest", "float32"),
    }


def python_of(environment, folder):
    """Makes a virtual environment if it is not there; returns its Python."""
    problem = installed(environment, folder)
    if problem:
        raise PeerError(f"cannot be installed: {problem}")
    return folder / environment / "bin" / "python"


@functools.cache
def installed(environment, folder):
    """Installs the packages of an environment, once; returns what went wrong, or ""."""
    python = folder / environment / "bin" / "python"
    ready = folder / environment / "ready"
    if ready.exists():
        return ""
    commands = [[base_python(environment), "-m", "venv", folder / environment]]
    for package in (*ENVIRONMENTS[environment], "numpy"):
        commands.append([python, "-m", "pip", "install", "-q", package])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "error: " in line]
            lines = [line for line in lines if "subprocess-exited" not in line]
            return (lines or ["no reason given"])[0].strip()[:200]
    ready.touch()
    return ""


def base_python(environment):
    """Finds the Python of an environment: an older one where there is one, else this one."""
    version = OLD_PYTHON.get(environment)
    if version is None:
        return sys.executable
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    kept = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    return kept[-1] if kept else shutil.which(f"python{version}") or sys.executable
