"""SIGTERM and Ctrl-C on a real `maml-jax`: exit codes, what is said, and not a bit lost.

The oracle is a run of the same command that nothing disturbed.
"""

import signal

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

RUN = [*SMALL, "--outer-steps", "1500", "--validate-every", "200", "--checkpoint-every", "300"]

LONG_CALL = """
import jax, jax.numpy as jnp
from maml_jax.stop_signals import stop_requests
call = jax.jit(lambda steps: jax.lax.while_loop(lambda i: i < steps, lambda i: i + 1, 0))
call(1)
with stop_requests():
    print("in the call", flush=True)
    call(jnp.iinfo(jnp.int32).max).block_until_ready()
    raise SystemExit("the call is over")
"""


def stop_after(step, number, child, run_dir):
    """Sends a signal when a step is in the log; returns how the child ended."""
    wait_until(lambda: last_logged_step(run_dir) >= step, child)
    logged = last_logged_step(run_dir)
    child.send_signal(number)
    code, out, err = finish(child)
    assert logged <= fingerprints(run_dir)[0] < 1500
    assert f"Go on with:\n  maml-jax resume '{run_dir}'\n" in out
    assert f"stopped by {number.name} after step {fingerprints(run_dir)[0]}" in out
    assert "the state is saved" in out
    # The answer to the signal is all that goes there.
    assert err.strip() == (
        "Stopping once the state is saved. Press Ctrl-C again to stop at once, unsaved."
    )
    return code


def test_stopped_twice_and_resumed_ends_with_the_same_bits(tmp_path, environment):  # noqa: F811
    """SIGTERM exits with 75, Ctrl-C with 130; a path with a space is quoted."""
    code, out, err = finish(start([*RUN, "--run-dir", tmp_path / "whole"], environment))
    assert (code, err) == (0, "")
    assert out.count("validation loss") == 8
    run_dir = tmp_path / "stopped twice"
    child = start([*RUN, "--run-dir", run_dir], environment)
    assert stop_after(20, signal.SIGTERM, child, run_dir) == 75
    stopped_at = fingerprints(run_dir)[0]
    child = start(["resume", run_dir], environment)
    assert stop_after(stopped_at + 20, signal.SIGINT, child, run_dir) == 130
    stopped_at = fingerprints(run_dir)[0]
    code, out, err = finish(start(["resume", run_dir], environment))
    assert (code, err) == (0, "")
    assert f"Going on after step {stopped_at:,} of 1,500." in out
    assert fingerprints(run_dir) == fingerprints(tmp_path / "whole")
    assert fingerprints(run_dir)[0] == 1500
    assert rows(run_dir) == rows(tmp_path / "whole")
    wanted = (tmp_path / "whole" / "result.json").read_text().split("training_seconds")[0]
    assert (run_dir / "result.json").read_text().split("training_seconds")[0] == wanted


def test_second_ctrl_c_kills_at_once_even_in_a_compiled_call(environment):  # noqa: F811
    """The call would take minutes; Python's own handlers wait until it is over."""
    child = start([], environment, LONG_CALL)
    assert child.stdout.readline() == "in the call\n"
    child.send_signal(signal.SIGINT)
    assert child.stderr.readline() == "\n"
    assert child.stderr.readline().startswith("Stopping once the state is saved.")
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    code, out, err = finish(child)
    assert (code, out, err) == (130, "", "")
