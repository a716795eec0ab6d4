"""Seconds to compile one outer gradient, against inner steps and mode of differentiation.

    python benchmarks/compile_time.py [--workloads W2] [--inner-steps 1 5 20 100] [--output FILE]

"Again" is the same compilation when JAX's persistent cache has its result, as in the second
run of a script that sets `jax_compilation_cache_dir`.
"""

import json
import subprocess
import sys
import tempfile
import time

import jax

import inner_steps
import workloads


def measure(*case):
    """Compiles one program in a process of its own with an empty cache, then in another."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--one", cache, json.dumps(case)]
        first, again = (
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(2)
        )
    return {**first, "again_seconds": again["compile_seconds"]}


def compile_one(cache, name, num_tasks, num_steps, mode):
    """Traces and compiles one program with the persistent cache in a folder."""
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    gradient, arguments = workloads.outer_gradient(name, num_tasks, num_steps, mode)
    began = time.perf_counter()
    lowered = gradient.lower(*arguments)
    traced = time.perf_counter()
    lowered.compile()
    seconds = {"trace_seconds": traced - began, "compile_seconds": time.perf_counter() - traced}
    print(json.dumps(seconds))


def main():
    """Measures, prints, writes."""
    if sys.argv[1:2] == ["--one"]:
        compile_one(sys.argv[2], *json.loads(sys.argv[3]))
        return
    inner_steps.sweep(
        __doc__.splitlines()[0],
        measure,
        {
            "trace_seconds": ("trace s", ".1f"),
            "compile_seconds": ("compile s", ".1f"),
            "again_seconds": ("again s", ".1f"),
        },
        title="time to the first outer gradient",
        num_tasks=4,
        inner_steps=[1, 5, 20, 100],
        output="compile_time.json",
    )


if __name__ == "__main__":
    main()
