"""One run at a time in a folder: real processes, a kill, another host, no locks, and a race.

    python -m pytest tests/test_run_lock.py

The oracle is who is alive.
"""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from maml_jax import cli, run_lock, runs, training
from maml_jax.recipes import PRESETS
from maml_jax.run_lock import RunLockedError, held

HOLDER = """
import sys, time
from maml_jax import run_lock
with run_lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def take(folder):
    """Takes the lock and gives it back; returns what was told."""
    told = []
    with held(folder, told.append):
        assert json.loads((folder / run_lock.FILE).read_text())["pid"] == os.getpid()
    assert not (folder / run_lock.FILE).exists()
    return told


def left_behind(folder, **changes):
    """The file of a process that did not end by itself."""
    holder = {"host": socket.gethostname(), "pid": 1, "started": "7", "since": "yesterday"}
    (folder / run_lock.FILE).write_text(json.dumps(holder | changes))


def test_a_living_process_is_waited_for_and_a_killed_one_is_replaced(tmp_path):
    words = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunLockedError, match=f"in use by process {holder.pid} on .*: wait for it"):
        take(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    (line,) = take(tmp_path)
    assert line.startswith(f"process {holder.pid} on {socket.gethostname()}, since 20")
    assert line.endswith("was killed and left its lock: taking over.")
    assert take(tmp_path) == []


def test_a_stopped_run_leaves_no_lock(tmp_path):
    for error in (training.TrainingStopped(3, signal.SIGTERM), KeyboardInterrupt(), OSError(28)):
        with pytest.raises(type(error)), held(tmp_path):
            raise error
        assert list(tmp_path.iterdir()) == []


def test_what_another_host_left_is_not_taken_over(tmp_path):
    left_behind(tmp_path, host="elsewhere")
    path = tmp_path / run_lock.FILE
    message = f"process 1 on elsewhere, since yesterday.*nothing trains there.*remove {path}"
    for _ in range(2):
        with pytest.raises(RunLockedError, match=message):
            take(tmp_path)
    path.unlink()
    assert take(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b'{"host": "els', b"[]", b"\xff\xfe"])
def test_a_file_that_a_power_cut_tore_locks_nothing(tmp_path, content):
    (tmp_path / run_lock.FILE).write_bytes(content)
    assert take(tmp_path) == []


@pytest.mark.parametrize(
    ("pid", "started", "free"),
    [
        ("own", "own", False),
        ("own", "7", True),  # The number of a living process that is another.
        (2**22 + 1, "7", True),  # No process can have it.
    ],
)
def test_without_locks_of_the_file_system_the_process_is_looked_up(
    tmp_path, monkeypatch, pid, started, free
):
    def flock(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    own = {"pid": os.getpid(), "started": run_lock._start_of(os.getpid())}
    assert own["started"].isdigit()
    left_behind(
        tmp_path,
        pid=own["pid"] if pid == "own" else pid,
        started=own["started"] if started == "own" else started,
    )
    if free:
        assert "taking over" in take(tmp_path)[0]
    else:
        with pytest.raises(RunLockedError, match=f"in use by process {os.getpid()}"):
            take(tmp_path)


def test_other_errors_of_the_lock_are_not_hidden(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        take(tmp_path)


def test_a_lock_that_cannot_be_written_is_not_left(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path / run_lock.FILE}'"):
        take(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert take(tmp_path) == []


def test_never_two_at_once(tmp_path, monkeypatch):
    """Eight threads for half a second, each with a descriptor of its own, as processes have."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # Takes most of the time.
    inside, most, turns, end = [], [], [], time.monotonic() + 0.5

    def race():
        while time.monotonic() < end:
            try:
                with held(tmp_path, turns.append):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0)
                    inside.pop()
            except RunLockedError:
                time.sleep(1e-4)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) > 10
    assert max(most) == 1
    assert turns == []


def test_the_command_line_refuses_the_second_run(tmp_path, capsys, monkeypatch):
    """Neither resumed nor begun anew, and nothing in the folder is changed."""
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "use_compilation_cache", lambda: None)
    run_dir = tmp_path / "run"
    runs.write_config(run_dir, PRESETS["sinusoid-10shot-finn2017"])
    train = ["train", "sinusoid-10shot-finn2017", "--run-dir", str(tmp_path / "new")]
    (tmp_path / "new").mkdir()
    for folder, words in ((run_dir, ["resume", str(run_dir)]), (tmp_path / "new", train)):
        with held(folder):
            before = sorted(path.name for path in folder.iterdir())
            with pytest.raises(SystemExit) as ended:
                cli.main(words)
            assert ended.value.code == 1
            said = capsys.readouterr().err
            assert said.startswith(f"error: {folder} is in use by process {os.getpid()} on ")
            after = {path.name for path in folder.iterdir()}
            assert after - {"checkpoints"} == set(before)
