"""The convolution's forms: ours against `lax.conv`, forward and through two derivatives.

    python benchmarks/kernels.py [--repeats 7] [--output FILE]

Kernels differ per task, as in MAML: "vmap" runs the tasks side by side, "scan" one after
the other. Each row does the same number of products of a layer of W1 or W2.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp

import report_table
from maml_jax import benchmarking
from maml_jax.convolution import convolution

LAYERS = {  # inputs [N, H, W, I], filters, stride
    "W1 layer 1": ((75, 28, 28, 1), 64, 2),
    "W1 layer 2": ((75, 14, 14, 64), 64, 2),
    "W2 layer 1": ((75, 84, 84, 3), 32, 1),
    "W2 layer 2": ((75, 42, 42, 32), 32, 1),
}
FORMS = {"ours": convolution, "lax.conv": jax.lax.conv_general_dilated}
NUM_TASKS = 2


def operations(form, stride):
    """Gives functions of (inputs, kernel): the value, the gradient, a derivative of that."""

    def conv(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return form(x, w, (stride, stride), "SAME", dimension_numbers=numbers)

    def loss(x, w):
        return jnp.square(conv(x, w)).mean()

    def gradient(x, w):
        return jax.grad(loss, argnums=(0, 1))(x, w)

    def second(x, w):
        return jax.grad(lambda w: sum(jnp.square(g).sum() for g in gradient(x, w)))(w)

    return {"value": conv, "gradient": gradient, "second order": second}


def mapped(function, axis):
    """Runs it on each task, side by side or one after the other."""
    if axis == "vmap":
        return jax.jit(jax.vmap(function))
    return jax.jit(lambda x, w: jax.lax.map(lambda pair: function(*pair), (x, w)))


def measure(layer, axis, name, repeats):
    """Times both forms of one operation in turn, and compares what they give."""
    shape, filters, stride = LAYERS[layer]
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (NUM_TASKS, *shape))
    w = jax.random.normal(keys[1], (NUM_TASKS, 3, 3, shape[-1], filters)) / 10
    calls = {form: mapped(operations(conv, stride)[name], axis) for form, conv in FORMS.items()}
    results = {form: call(x, w) for form, call in calls.items()}
    sides = {
        form: lambda call=call: benchmarking.timed(lambda: call(x, w))
        for form, call in calls.items()
    }
    timings = benchmarking.alternate(sides, repeats=repeats)
    return {
        "layer": layer,
        "axis": axis,
        "operation": name,
        "relative_error": benchmarking.relative_error(results["ours"], results["lax.conv"]),
        **{form: timing.as_dict() for form, timing in timings.items()},
    }


def main():
    """Measures every layer, prints the table, writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--axes", nargs="+", choices=["vmap", "scan"], default=["scan"])
    parser.add_argument("--repeats", type=int, default=7)
    default = pathlib.Path(__file__).parent / "results" / "kernels.json"
    parser.add_argument("--output", type=pathlib.Path, default=default)
    options = parser.parse_args()
    results, rows = [], []
    for layer in options.layers:
        for axis in options.axes:
            for name in ("value", "gradient", "second order"):
                result = measure(layer, axis, name, options.repeats)
                results.append(result)
                ours, theirs = (result[form]["median"] for form in FORMS)
                numbers = (f"{1e3 * ours:.1f}", f"{1e3 * theirs:.1f}", f"{theirs / ours:.2f}")
                rows.append((layer, axis, name, *numbers, f"{result['relative_error']:.0e}"))
                report_table.write(options.output, {"results": results})
    columns = ("", "tasks", "operation", "ours, ms", "lax.conv, ms", "ratio", "error")
    report_table.show(f"{NUM_TASKS} tasks with kernels of their own", rows, columns)


if __name__ == "__main__":
    main()
