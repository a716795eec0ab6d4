"""Two real processes of two devices each, on loopback: they train as one, and stop as one.

The oracle is the same two processes, undisturbed. Each has one core of its own, if there are
two: on several cores XLA on a CPU may round otherwise from call to call.
"""

import contextlib
import re
import signal
import socket
import time

import jax
import numpy as np
import pytest

from children import (
    SMALL,
    environment,  # noqa: F401
    fingerprints,
    finish,
    last_logged_step,
    rows,
    start,
    wait_until,
)
from maml_jax import exit_codes, processes, runs
from maml_jax.processes import Cluster

STEPS = 160
PATIENCE = 15.0  # Seconds that a survivor may take to notice and leave.
RUN = [
    *SMALL,
    *("--meta-batch-size", "4", "--outer-steps", str(STEPS)),
    *("--validate-every", "80", "--checkpoint-every", "10"),
]

_MAIN = """
import os, sys
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(sys.argv[-1]) % len(cores)]})
from maml_jax import cli, runs
runs.draw_all = lambda *arguments, **options: []
cli.main()
"""
_GLOO = re.compile(r"\[Gloo\]|is connected to|connected peer|peer ranks|^[\d\s]*$")


@contextlib.contextmanager
def pairs(environment):  # noqa: F811
    """Starts a command in two processes; kills what is left of them at the end."""
    started = []

    def begin(*words):
        pair = [
            start([*words, *flags(process)], {**environment, "JAX_NUM_CPU_DEVICES": "2"}, _MAIN)
            for flags in [address()]
            for process in range(2)
        ]
        started.extend(pair)
        return pair

    try:
        yield begin
    finally:
        for child in started:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()


@pytest.fixture
def two(environment):  # noqa: F811
    with pairs(environment) as begin:
        yield begin


def address():
    """The flags of each process, for a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"]
    return lambda process: [*flags, "--process-id", str(process)]


def ended(child):
    """As `finish`, without what Gloo says when it is connected, from threads that cut in."""
    code, *said = finish(child)
    lines = [[line for line in text.splitlines(True) if not _GLOO.search(line)] for text in said]
    return code, *map("".join, lines)


def when_at(step, run_dir, child):
    wait_until(lambda: last_logged_step(run_dir) >= step, child)


def lose(pair, number, run_dir, step):
    """Kills one process at a step; returns how the other one ended, within `PATIENCE`."""
    when_at(step, run_dir, pair[0])
    pair[number].kill()
    began = time.monotonic()
    survivor = finish(pair[1 - number])
    assert time.monotonic() - began < PATIENCE
    finish(pair[number])
    return survivor


@pytest.mark.slow
def test_losing_either_process_and_stopping_both_change_no_bit(tmp_path, two):
    whole, run_dir = tmp_path / "whole", tmp_path / "disturbed"
    first, second = map(ended, two(*RUN, "--run-dir", whole))
    assert (first[0], second) == (0, (0, "", "")), (first, second)
    assert "on 4 x cpu in 2 processes" in first[1]
    assert fingerprints(whole)[0] == STEPS

    code, out, err = lose(two(*RUN, "--run-dir", run_dir), 1, run_dir, 30)
    assert code == exit_codes.LOST_PROCESS
    assert "another process is gone" in err
    assert f"maml-jax resume {run_dir}" in out

    pair = two("resume", run_dir)
    when_at(fingerprints(run_dir)[0] + 20, run_dir, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    (code, out, _), other = map(finish, pair)
    assert (code, other[0]) == (75, 75)
    assert f"stopped by SIGTERM after step {fingerprints(run_dir)[0]}" in out

    before = fingerprints(run_dir)[0]
    assert before < STEPS - 40, "the machine is so fast that nothing is left to lose"
    code, _, err = lose(two("resume", run_dir), 0, run_dir, before + 20)
    assert code in (exit_codes.LOST_PROCESS, -signal.SIGABRT), (code, err)

    first, second = map(ended, two("resume", run_dir))
    assert (first[0], second) == (0, (0, "", "")), (first, second)
    assert fingerprints(run_dir) == fingerprints(whole)
    assert rows(run_dir) == rows(whole)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_in_one(tmp_path, two, environment):  # noqa: F811
    """Stopped in the middle, and ended on one device: the state is that of four to 1e-6.

    Of three tasks: one device has none.
    """
    whole, run_dir = tmp_path / "whole", tmp_path / "moved"
    short = [*RUN, "--meta-batch-size", "3", "--outer-steps", "40", "--diagnose-every", "20"]
    short.append("--run-dir")
    for child in two(*short, whole):
        assert finish(child)[0] == 0
    pair = two(*short, run_dir)
    when_at(10, run_dir, pair[0])
    pair[0].send_signal(signal.SIGINT)
    codes = [finish(child)[0] for child in pair]
    assert codes == [130, 75]
    code, _, err = finish(start(["resume", run_dir], {**environment, "JAX_NUM_CPU_DEVICES": "1"}))
    assert (code, err) == (0, "")
    with jax.enable_x64(False):  # As the children had it.
        ends = [runs.load_run(folder)[1] for folder in (whole, run_dir)]
    for want, got in zip(*map(jax.tree.leaves, ends), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_what_process_0_cannot_do_ends_all(tmp_path, two):
    (tmp_path / "config.json").write_text("{}")
    first, second = map(finish, two(*RUN, "--run-dir", tmp_path))
    assert (first[0], second[0]) == (1, 1)
    assert "holds a run already" in first[2]
    assert "process 0 failed: FileExistsError" in second[2]
    assert "holds a run already" in second[2]


_SPLIT_MODEL = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import maml_jax as mj
from maml_jax import checkpoints, placement, processes
folder, flags = sys.argv[1], sys.argv
number = int(flags[-1])
processes.connect(processes.Cluster(
    distributed=True, coordinator=flags[4], num_processes=2, process_id=number))
mesh = jax.make_mesh((1, 4), ("tasks", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
model = mj.models.Mlp(features=(8, 8, 1))
outer = mj.make_outer_step(
    mj.losses.regression(model.apply), mj.maml(optax.sgd(0.01), 1), optax.adam(1e-3), mesh=mesh)
state = outer.init(model.init(jax.random.key(0), jnp.zeros((1, 1))))
sampler = mj.data.sinusoid()
run = lambda state: mj.run_outer_steps(outer, sampler, state, 0, num_steps=3, meta_batch_size=2)[0]
state = run(state)
processes._CHUNK_BYTES = 1000  # The checkpoint goes from process 0 to 1 in several pieces.
kernel = state.params["params"]["hidden_1"]["kernel"]
assert kernel.addressable_data(0).size == kernel.size // 4, kernel.sharding
checkpoints.save(folder, 3, state, config={})
restored = checkpoints.restore(folder, state).state
same = jax.tree.map(lambda a, b: jnp.array_equal(a, b), state, restored)
assert all(map(bool, jax.tree.leaves(same)))
assert jax.tree.leaves(restored)[0].sharding == jax.tree.leaves(state)[0].sharding
assert int(run(restored).step) == 6
spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("model"))
tasks = mj.meta_batch(sampler, jax.random.key(1), 4)
sums = [
    outer.update(state, tasks, mask=processes.put(np.arange(4) < 3, where))[1]["query_loss"]
    for where in (spread, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))]
assert np.isclose(*sums), sums
weighing = mj.make_outer_step(
    mj.losses.regression(model.apply), mj.maml(optax.sgd(0.01), 1), optax.adam(1e-3),
    aggregation="weighted", mesh=mesh)
weighing.update(state, tasks, weights=processes.put(np.arange(4.0), spread))
print("done")
"""


@pytest.mark.slow
def test_parameters_split_over_processes_are_saved_and_restored(tmp_path, environment):  # noqa: F811
    flags = address()
    variables = {**environment, "JAX_NUM_CPU_DEVICES": "2"}
    pair = [start([tmp_path, *flags(i)], variables, _SPLIT_MODEL) for i in range(2)]
    assert [ended(child) for child in pair] == [(0, "done\n", "")] * 2


def joined(**other):
    """Process 1 of two."""
    given = {"coordinator": "127.0.0.1:5", "num_processes": 2, "process_id": 1}
    return Cluster(distributed=True, **(given | other))


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (Cluster(coordinator="127.0.0.1:1"), "go together, with --distributed"),
        (Cluster(distributed=True, num_processes=2), "go together, with --distributed"),
        (Cluster(distributed=True), "--distributed found no cluster"),
        (joined(coordinator="localhost"), "must be HOST:PORT of process 0, got 'localhost'"),
        (joined(coordinator="1234"), "must be HOST:PORT"),
        (joined(process_id=2), "--process-id must be from 0 to below --num-processes, got 2 of 2"),
    ],
)
def test_half_an_address(cluster, words, monkeypatch):
    def initialize(*arguments, **options):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=words):
        processes.connect(cluster)


def test_joining_too_late(monkeypatch):
    def initialize(*arguments, **options):
        raise RuntimeError("jax.distributed.initialize() must be called before any JAX calls.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match="connect must be called once, before JAX computes"):
        processes.connect(joined())


def test_others_that_do_not_come(monkeypatch):
    def initialize(*arguments, **options):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    cluster = Cluster(distributed=True, coordinator="10.0.0.1:5", num_processes=2, process_id=1)
    with pytest.raises(ConnectionError, match=r"did not find each other at 10\.0\.0\.1:5; start 2"):
        processes.connect(cluster)


@pytest.mark.parametrize(
    ("coordinator", "bound"),
    [
        ("127.0.0.1:1234", "127.0.0.1:1234"),
        ("localhost:1", "localhost:1"),
        ("[::1]:1", "[::1]:1"),
        ("10.0.0.1:1234", None),
        ("trainer-0.svc:1234", None),
        (None, None),
    ],
)
def test_loopback_listens_on_loopback_only(coordinator, bound, monkeypatch):
    seen = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **options: seen.update(options))
    named = {} if coordinator is None else {"num_processes": 1, "process_id": 0}
    processes.connect(Cluster(distributed=True, coordinator=coordinator, **named))
    assert seen["coordinator_bind_address"] == bound


def test_processes_use_all_of_their_devices(monkeypatch):
    """However few tasks there are: each process has to take part in every exchange."""
    from maml_jax import devices

    monkeypatch.setattr(processes, "several", lambda: True)
    count = len(jax.devices())
    for num_tasks in (count - 1, count + 1, 2 * count):
        assert devices.task_mesh(num_tasks, at_most=1).size == count


def test_only_errors_of_the_connection_count_as_a_loss():
    assert processes.is_lost_process(RuntimeError("UNAVAILABLE: Connection reset by peer"))
    assert not processes.is_lost_process(OSError("Connection closed by peer"))
    assert not processes.is_lost_process(ValueError("num_steps must be at least 0, got -1."))
    failed = processes.ProcessError("process 0 failed: CheckpointWriteError: UNAVAILABLE: disk")
    assert not processes.is_lost_process(failed)
