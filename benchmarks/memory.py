"""Temporary memory of one outer gradient against inner steps, by mode of differentiation.

    python benchmarks/memory.py [--workloads W2] [--inner-steps 1 5 20 100 200] [--output FILE]

XLA's own count of the compiled program; nothing is run.
"""

import inner_steps
import workloads


def measure(name, num_tasks, num_steps, mode):
    """Compiles one program."""
    gradient, arguments = workloads.outer_gradient(name, num_tasks, num_steps, mode)
    compiled = gradient.lower(*arguments).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    return {"temporary_bytes": temporary, "temporary_mib": temporary / 2**20}


def main():
    """Measures, prints, writes."""
    inner_steps.sweep(
        __doc__.splitlines()[0],
        measure,
        {"temporary_mib": ("MiB", ".0f")},
        title="temporary memory of one outer gradient",
        num_tasks=1,
        inner_steps=[1, 5, 20, 100, 200],
        output="memory.json",
    )


if __name__ == "__main__":
    main()
