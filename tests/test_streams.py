"""Output that nobody reads, on a real `maml-jax`: a run trains on, saves, and keeps its code.

As in `maml-jax train | tee log`, of which Ctrl-C ends `tee` first.
"""

import signal
import subprocess
import sys
import time

import pytest

import children
from children import (
    SMALL,
    environment,  # noqa: F401
    fingerprints,
    last_logged_step,
    wait_until,
)
from test_signals import LONG_CALL

pytestmark = pytest.mark.slow

PROGRAM = children._MAIN.replace("cli.main()", "cli.entry()")
RUN = [*SMALL, "--outer-steps", "600", "--validate-every", "20", "--checkpoint-every", "600"]

FILE_2 = """
import pathlib, signal, sys
file = open(sys.argv[1], "w")
assert file.fileno() == 2
from maml_jax.stop_signals import stop_requests
with stop_requests() as request:
    signal.raise_signal(signal.SIGINT)
raise SystemExit(request.signal + len(pathlib.Path(sys.argv[1]).read_text()))
"""


def python(code):
    return [sys.executable, "-W", "error", "-c", code]


def start(words, environment, run, **streams):  # noqa: F811
    """Starts a child, whose standard error goes where its output goes unless told otherwise."""
    return subprocess.Popen(
        [*run, *map(str, words)],
        # Where every word is written at once nothing is left to fail at the end.
        env={name: value for name, value in environment.items() if name != "PYTHONUNBUFFERED"},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **streams},
    )


@pytest.mark.parametrize(
    ("number", "code", "bar"),
    [(None, 0, False), (None, 0, True), (signal.SIGTERM, 75, False), (signal.SIGINT, 130, True)],
)
def test_a_run_outlives_its_reader(tmp_path, environment, number, code, bar):  # noqa: F811
    """The bar is drawn by a thread of its own, which may meet the broken pipe first."""
    variables = environment | ({"FORCE_COLOR": "1"} if bar else {})
    child = start([*RUN, "--run-dir", tmp_path], variables, python(PROGRAM))
    wait_until(lambda: last_logged_step(tmp_path) >= 30, child)
    child.stdout.close()
    step = last_logged_step(tmp_path)
    # A line per validation is written to the broken pipe before the signal comes.
    wait_until(lambda: last_logged_step(tmp_path) >= step + 50, child)
    if number is not None:
        child.send_signal(number)
    assert child.wait(children.PATIENCE) == code
    saved = fingerprints(tmp_path)[0]
    assert saved == 600 if number is None else step + 50 <= saved < 600
    assert (tmp_path / "result.json").exists() == (number is None)


def test_second_ctrl_c_kills_at_once_though_nobody_reads_the_first_answer(environment):  # noqa: F811
    child = start([], environment, python(LONG_CALL), stderr=subprocess.PIPE)
    assert child.stdout.readline() == "in the call\n"
    child.stderr.close()
    child.send_signal(signal.SIGINT)
    time.sleep(0.5)  # The answer to the first goes nowhere: there is nothing to wait for.
    assert child.poll() is None
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 130
    child.stdout.close()


@pytest.mark.parametrize("redirections", ["", ">&- 2>&-"], ids=["no reader", "closed"])
def test_an_error_keeps_its_exit_code(environment, redirections):  # noqa: F811
    code = f"import sys; sys.stdin.read()\n{PROGRAM}"
    run = ["sh", "-c", f'exec "$@" {redirections}', "sh", *python(code)]
    child = start(["trian"], environment, run, stdin=subprocess.PIPE)
    child.stdout.close()
    child.stdin.close()
    assert child.wait(children.PATIENCE) == 2


def test_a_warning_that_nobody_reads_ends_nothing(environment):  # noqa: F811
    """Neither where it is given, nor by code 120 when Python flushes what it could not write."""
    code = """
import sys, warnings
from maml_jax.command_tools import show_warning
sys.stdin.read()
warnings.showwarning = show_warning
warnings.simplefilter("always")
warnings.warn("a bit.")
"""
    child = start([], environment, python(code), stdin=subprocess.PIPE)
    child.stdout.close()
    child.stdin.close()
    assert child.wait(children.PATIENCE) == 0


def test_the_answer_is_not_written_to_a_file_that_took_its_place(tmp_path, environment):  # noqa: F811
    """Standard error was closed from the start: the number 2 is then that of the next file."""
    words = ["sh", "-c", 'exec "$@" 2>&-', "sh", *python(FILE_2)]
    ended = subprocess.run([*words, tmp_path / "file"], env=environment, check=False)
    assert ended.returncode == signal.SIGINT
