"""Timing tools, and the benchmark programs at their smallest size."""

import contextlib
import importlib
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


def test_relative_error_of_what_is_not_a_number():
    want = [np.array([1.0]), np.array([1.0])]
    assert np.isnan(benchmarking.relative_error([np.array([1.0]), np.array([np.nan])], want))


SIDE = """
import sys
sys.path.insert(0, {programs!r})
import serving
settings, arrays = serving.read(sys.argv[2])
weights = arrays["params/head/kernel"] * settings["learning_rate"]
{then}
serving.serve({{"version": "1"}}, lambda: weights, lambda g: {{"head": g}}, lambda g: None)
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """Starts a peer of our own, and gives the workload it was given."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    peer_process = importlib.import_module("peer_process")
    workload = peer_process.workloads.make("W3", num_tasks=2)
    monkeypatch.setattr(peer_process, "python_of", lambda environment, folder: sys.executable)

    def start(then=""):
        program = tmp_path / "side.py"
        program.write_text(SIDE.format(programs=str(PROGRAMS), then=then))
        monkeypatch.setitem(peer_process.PEERS, "mine", (program, "none"))
        return peer_process.PeerProcess("mine", workload, tmp_path)

    return start, workload, peer_process.PeerError


def test_a_peer_answers_with_gradients_and_seconds(peer):
    start, workload, _ = peer
    with contextlib.closing(start()) as process:
        assert process.facts == {"version": "1"}
        kernel = workload.params["params"]["head"]["kernel"]
        np.testing.assert_allclose(process.gradient()["head"], 0.01 * kernel, rtol=1e-6)
        assert process.run() >= 0


def test_a_peer_that_fails_gives_its_reason(peer):
    start, _, error = peer
    with pytest.raises(error, match=r"^ValueError: no such layer$"):
        start("raise ValueError('no such layer')")


def test_kinds_of_operations_of_a_program(monkeypatch):
    """A fusion counts as what is in it."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    program = """HloModule jit_f

%body.1 (p: f32[2]) -> f32[2] {
  ROOT %dot.3 = f32[2,2] dot(%p, %p)
}

%body.2 (p: f32[2]) -> f32[] {
  ROOT %reduce.1 = f32[] reduce(%p, %c), dimensions={0}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %ynn_fusion.1 = f32[2,2] fusion(%p), kind=kCustom, calls=%body.1
  %fusion.2 = f32[] fusion(%p), kind=kLoop, calls=%body.2
  %pad_slice_fusion.7 = f32[2] fusion(%p), kind=kLoop, calls=%body.3
  %multiply_add_fusion = f32[2] fusion(%p), kind=kLoop, calls=%body.4
  ROOT %copy.4 = f32[2] copy(%p)
}
"""
    found = importlib.import_module("breakdown").kinds(program)
    assert found["ynn_fusion.1"] == "products"
    assert found["fusion.2"] == "sums"
    assert found["pad_slice_fusion.7"] == found["copy.4"] == "copies and patches"
    assert found["multiply_add_fusion"] == "elementwise"


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

    run(
        "breakdown.py",
        *("--workloads", "W3", "--repeats", 1, "--output", results / "breakdown.json"),
    )
    (row,) = json.loads((results / "breakdown.json").read_text())["results"]
    assert 0 < row["products"] < 10 * row["whole"]

    run("report.py", "--results", results)
    page = (results / "report.html").read_text()
    assert "naive JAX, vmap" in page
    assert "copies and patches" in page
    assert page.count("data:image/png;base64") == 4
    assert "http" not in page.replace("http://www.w3.org", "")
