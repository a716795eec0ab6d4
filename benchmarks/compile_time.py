"""Seconds to compile one outer gradient, against inner steps and mode of differentiation.

    python benchmarks/compile_time.py [--workloads W2] [--inner-steps 1 5 20 100] [--output FILE]

"Again" is the same compilation when JAX's persistent cache has its result, as in the second
run of a script that sets `jax_compilation_cache_dir`.
"""

import tempfile
import time

import jax

import inner_steps
import workloads


def measure(*case):
    """Compiles one program with an empty cache, then with its own result in it."""
    seconds = []
    for _ in range(2):
        jax.clear_caches()
        began = time.perf_counter()
        lowered = workloads.lowered_gradient(*case)
        traced = time.perf_counter()
        lowered.compile()
        seconds.append((traced - began, time.perf_counter() - traced))
    (trace, compile_), (_, again) = seconds
    return {"trace_seconds": trace, "compile_seconds": compile_, "again_seconds": again}


def main():
    """Measures, prints, writes."""
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
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
