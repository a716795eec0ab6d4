"""SIGTERM and Ctrl-C outside of the training loop of a real `maml-jax`: exit codes, no litter.

While data are built, or in the final evaluation, with a computation that is still going on.
"""

import os
import signal
import threading
import time

import pytest

import children
from children import (
    SMALL,
    environment,  # noqa: F401
    fingerprints,
    finish,
    start,
)
from maml_jax import checkpoints, cli, processes, run_lock, stop_signals, training
from maml_jax.stop_signals import Terminated, sigterm_raises, stop_requests
from training_runs import quick_compilation, train  # noqa: F401

pytestmark = pytest.mark.slow

PROGRAM = children._MAIN.replace("cli.main()", "cli.entry()")
IN_PYTHON = PROGRAM.replace(
    "cli.entry()",
    """
import jax, time
loop = jax.jit(lambda steps: jax.lax.while_loop(lambda i: i < steps, lambda i: i + 1, 0))
def finish(*arguments):
    loop(1), loop(2**31 - 1)  # This one goes on behind Python's back.
    print("evaluating", flush=True)
    while True:
        time.sleep(0.01)  # Ctrl-C just before a long sleep would not end it.
runs._finish = finish
cli.entry()""",
)
IN_A_CALL = PROGRAM.replace(
    "cli.entry()",
    """
from maml_jax import stop_signals
stop_signals._SECONDS_TO_UNWIND = 0.5
finish = runs._finish
def announced(*arguments):
    print("evaluating", flush=True)
    return finish(*arguments)
runs._finish = announced
cli.entry()""",
)
BUILDING = PROGRAM.replace(
    "cli.entry()",
    """
import time
def assemble(config):
    print("building", flush=True)
    time.sleep(60)
runs.assemble = assemble
cli.entry()""",
)
STUCK = """
import signal, time
from maml_jax import stop_signals
stop_signals._SECONDS_TO_UNWIND = 60.0
signal.signal(signal.SIGINT, lambda *_: None)  # As if a compiled call kept Python from it.
with stop_signals.sigterm_raises():
    print("stuck", flush=True)
    while True:
        time.sleep(60)
"""


def stop_when_it_says(line, number, child, delay):
    """Sends a signal some seconds after a line of output; returns how the child ended."""
    while child.stdout.readline().strip() != line:
        assert child.poll() is None
    time.sleep(delay)
    child.send_signal(number)
    return finish(child)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_in_the_final_evaluation(tmp_path, environment, number, code):  # noqa: F811
    """A computation is still going on when the process ends."""
    words = [*SMALL, "--outer-steps", "20", "--run-dir", tmp_path]
    child = start(words, environment, IN_PYTHON)
    ended, out, err = stop_when_it_says("evaluating", number, child, 0.0)
    assert ended == code, (out, err)
    assert ("stopped by SIGTERM; there was nothing to save." in out) == (code == 75)
    assert f"Go on with:\n  maml-jax resume {tmp_path}\n" in out
    assert err == ("" if code == 75 else "error: interrupted.\n")
    assert not (tmp_path / run_lock.FILE).exists()
    assert not (tmp_path / "result.json").exists()
    assert fingerprints(tmp_path)[0] == 20


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_stopped_in_a_compiled_call_of_the_final_evaluation(
    tmp_path,
    environment,  # noqa: F811
    number,
    code,
):
    """The call takes a minute, in which Python's own handlers do not run."""
    words = [*SMALL, "--outer-steps", "20", "--test-tasks", "20000000", "--run-dir", tmp_path]
    child = start(words, environment, IN_A_CALL)
    began = time.monotonic()
    assert stop_when_it_says("evaluating", number, child, 1.0)[0] == code
    assert time.monotonic() - began < 30
    assert not (tmp_path / "result.json").exists()


def test_stopped_while_data_are_built(tmp_path, environment):  # noqa: F811
    """There is nothing to resume yet, and nothing is left behind."""
    child = start([*SMALL, "--run-dir", tmp_path / "run"], environment, BUILDING)
    code, out, err = stop_when_it_says("building", signal.SIGTERM, child, 0.0)
    assert (code, out, err) == (75, "stopped by SIGTERM; there was nothing to save.\n", "")
    assert not (tmp_path / "run").exists()


def test_sigterm_ends_a_wait_that_it_did_not_interrupt(monkeypatch):
    """As where it comes just before the wait: 1 in 1,200 such did on two cores."""
    monkeypatch.setattr(stop_signals, "_SECONDS_TO_UNWIND", 90.0)
    waits = threading.Event()

    def to_itself():
        waits.wait()
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    def wait():
        waits.set()
        time.sleep(60)

    other = threading.Thread(target=to_itself)
    other.start()
    before = signal.getsignal(signal.SIGTERM)
    began = time.monotonic()
    try:
        with pytest.raises(Terminated), sigterm_raises():
            wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        other.join()
    assert time.monotonic() - began < 30


def test_sigterm_is_handed_back_after_training():
    """Raised once: the second one does not cut in where the first is answered."""
    before = signal.getsignal(signal.SIGTERM)
    answered = []

    @sigterm_raises()
    def block():
        with stop_requests() as request:
            signal.raise_signal(signal.SIGTERM)
        assert request.signal == signal.SIGTERM
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            answered.append(True)

    try:
        with pytest.raises(Terminated):
            block()
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answered == [True]
    with pytest.raises(ValueError, match="another error"), sigterm_raises():
        raise ValueError("another error")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_last_save_stops_the_run(
    tmp_path,
    monkeypatch,
    number,
    quick_compilation,  # noqa: F811
):
    save = checkpoints.save

    def and_signal(folder, step, *arguments, **options):
        save(folder, step, *arguments, **options)
        if step == 14:
            signal.raise_signal(number)

    monkeypatch.setattr(checkpoints, "save", and_signal)
    with pytest.raises(training.TrainingStopped, match=f"{number.name} after step 14"):
        train(tmp_path)
    assert max(checkpoints.steps(tmp_path / "checkpoints")) == 14


@pytest.mark.parametrize(
    ("ending", "connected", "left_with"),
    [
        (SystemExit(130), False, 130),
        (SystemExit(2), False, 2),
        (KeyboardInterrupt(), False, 130),
        (SystemExit(75), True, None),
        (SystemExit(0), False, None),
        (SystemExit(None), False, None),
    ],
    ids=str,
)
def test_the_program_ends_without_tearing_down(monkeypatch, ending, connected, left_with):
    """Where processes are joined JAX ends them together; after 0 nothing is computed."""
    left = []

    def end(words=None):
        raise ending

    def leave(code):
        left.append(code)
        raise SystemExit("left")

    monkeypatch.setattr(cli, "main", end)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(processes, "connected", lambda: connected)
    with pytest.raises(SystemExit) as ended:
        cli.entry()
    assert left == ([] if left_with is None else [left_with])
    assert ended.value.code == ("left" if left else ending.code)


def test_second_ctrl_c_kills_at_once_in_the_final_evaluation(environment):  # noqa: F811
    child = start([], environment, STUCK)
    assert child.stdout.readline() == "stuck\n"
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(30) == 130  # Not for want of control, which takes 60 s.
    assert finish(child) == (130, "", "")
