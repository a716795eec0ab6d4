"""Timing tools, and the benchmark programs at their smallest size."""

import json
import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import benchmarking

PROGRAMS = pathlib.Path(__file__).resolve().parents[1] / "benchmarks"


def test_sides_take_turns_and_the_order_turns_round():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or float(len(calls)) for name in "ab"}
    timings = benchmarking.alternate(sides, repeats=3)
    assert calls == ["a", "b", "b", "a", "a", "b"]
    assert timings["a"].seconds == (1.0, 4.0, 5.0)
    assert timings["a"].median == 4.0
    assert timings["b"].as_dict()["quartiles"] == pytest.approx((2.5, 4.5))


def test_no_repeat_is_refused():
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        benchmarking.alternate({}, repeats=0)


def test_cost_of_a_product():
    factors = jnp.ones((8, 16)), jnp.ones((16, 4))
    cost = benchmarking.cost(lambda a, b: a @ b, *factors)
    assert cost.flops == pytest.approx(2 * 8 * 16 * 4, rel=0.1)
    entries = 8 * 16 + 16 * 4 + 8 * 4
    assert cost.num_bytes == pytest.approx(entries * factors[0].dtype.itemsize, rel=0.1)


def test_relative_error_is_of_the_largest_entry():
    want = {"a": np.array([4.0, 0.0]), "b": np.array([1.0])}
    got = {"a": np.array([4.0, 0.5]), "b": np.array([1.0])}
    assert benchmarking.relative_error(got, want) == 0.125


def run(program, *flags):
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.run(
        [sys.executable, PROGRAMS / program, *map(str, flags)],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    ).stdout


@pytest.mark.slow
def test_programs_measure_write_and_report(tmp_path):
    """Oracle: the naive program computes the same gradient, and every file reaches the page."""
    results = tmp_path / "results"
    output = ("--output", results / "peers.json", "--repeats", 1)
    tasks = ("--num-tasks", 25)
    said = run("peers.py", "--workloads", "W3", *tasks, "--peers", "naive_vmap", *output)
    assert "times ours" in said
    (peers,) = json.loads((results / "peers.json").read_text())["results"]
    by_name = {row["peer"]: row for row in peers["rows"]}
    assert by_name["maml_jax"]["ratio"] == 1.0
    assert by_name["naive_vmap"]["relative_error"] < 1e-5

    run(
        "memory.py",
        *("--workloads", "W3", "--inner-steps", 1, 8, "--modes", "reverse", "mixed"),
        *("--output", results / "memory.json"),
    )
    rows = json.loads((results / "memory.json").read_text())["results"]
    assert [row["num_steps"] for row in rows] == [1, 8, 1, 8]
    assert all(row["temporary_bytes"] > 0 for row in rows)

    run(
        "compile_time.py",
        *("--workloads", "W3", "--inner-steps", 1, "--modes", "mixed"),
        *("--output", results / "compile_time.json"),
    )
    (row,) = json.loads((results / "compile_time.json").read_text())["results"]
    assert 0 < row["again_seconds"] < row["compile_seconds"]

    run(
        "throughput.py",
        *("--workloads", "W3", "--num-tasks", 2, "--repeats", 1),
        *("--output", results / "throughput.json"),
    )
    (row,) = json.loads((results / "throughput.json").read_text())["results"]
    assert 0 < row["roof_fraction"] < 1
    assert row["copy_fraction"] > 0

    run("report.py", "--results", results)
    page = (results / "report.html").read_text()
    assert "naive JAX, vmap" in page
    assert page.count("data:image/png;base64") == 4
    assert "http" not in page.replace("http://www.w3.org", "")
