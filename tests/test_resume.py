"""Stops, crashes and damage: whatever happens to a run, it ends with the same bits.

The oracle is the run that nothing disturbed.
"""

import errno
import itertools
import json
import os
import signal
import threading

import optax
import pytest

import maml_jax as mj
from maml_jax import checkpoints, training
from maml_jax.metrics_log import append_metrics, read_metrics, truncate_metrics
from maml_jax.stop_signals import stop_requests
from training_runs import (
    CALL_ENDS,
    CONFIG,
    INNER,
    LOSS,
    at_step,
    bits,
    fresh,
    quick_compilation,  # noqa: F401
    resumed,
    rows,
    train,
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The bits at the end, and the log, of a run from start to end."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    progress = train(run_dir)
    return bits(progress), rows(run_dir)


def assert_undisturbed(run_dir, progress, undisturbed):
    assert bits(progress) == undisturbed[0]
    assert rows(run_dir) == undisturbed[1]


@pytest.mark.parametrize(
    ("number", "code", "stop_at"),
    [(signal.SIGTERM, 75, step) for step in CALL_ENDS] + [(signal.SIGINT, 130, 6)],
)
def test_stop_and_resume_change_no_bit(tmp_path, undisturbed, capfd, number, code, stop_at):
    """Parameters, Adam's moments, best parameters and the log."""
    with pytest.raises(training.TrainingStopped, match=f"{number.name} after step") as stopped:
        train(tmp_path, report=at_step(stop_at, lambda: signal.raise_signal(number)))
    assert (stopped.value.step, stopped.value.exit_code) == (stop_at, code)
    assert "Press Ctrl-C again" in capfd.readouterr().err
    assert max(checkpoints.steps(tmp_path / "checkpoints")) == stop_at
    assert_undisturbed(tmp_path, resumed(tmp_path), undisturbed)


@pytest.mark.parametrize("crash_at", [3, 6, 12, 14])
@pytest.mark.parametrize("litter", ["", '{"step": 12, "query_lo', '{"step": 99}'])
def test_lines_after_the_checkpoint_are_made_again_once(tmp_path, undisturbed, crash_at, litter):
    """A crash after the log line and before the save; a kill in the middle of a line."""

    def crash():
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, report=at_step(crash_at, crash))
    with open(tmp_path / "metrics.jsonl", "a") as log:
        log.write(litter)
    assert_undisturbed(tmp_path, resumed(tmp_path), undisturbed)


def test_a_finished_run_makes_no_step(tmp_path, undisturbed):
    """The sampler would fail on its first call: it is not called."""
    train(tmp_path)
    assert_undisturbed(tmp_path, resumed(tmp_path, sampler=None), undisturbed)


def test_full_disk_stops_the_run_and_leaves_the_older_checkpoint(
    tmp_path, undisturbed, monkeypatch
):
    """The second save fails half-way; with space again, the run ends with the same bits."""
    saves, write = itertools.count(), checkpoints.write_arrays

    def full(path, arrays):
        write(path, arrays)
        if next(saves) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_arrays", full)
        with pytest.raises(
            checkpoints.CheckpointWriteError,
            match=r"Cannot write to .*checkpoints: \d+ bytes needed, \d+ bytes free: .*No space",
        ):
            train(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000006"]
    assert_undisturbed(tmp_path, resumed(tmp_path), undisturbed)


@pytest.mark.parametrize("cause", ["a file in the way", "no space"])
def test_a_folder_that_cannot_be_written_fails_before_the_first_step(tmp_path, monkeypatch, cause):
    """The sampler would fail on its first call: it is not called."""
    if cause == "no space":
        usage = type("Usage", (), {"free": 10})
        monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda folder: usage)
    else:
        (tmp_path / "run").write_text("not a folder")
    message = r"Cannot write to .*run/checkpoints: \d+ bytes needed"
    with pytest.raises(checkpoints.CheckpointWriteError, match=message):
        train(tmp_path / "run", sampler=None)


def test_checkpoint_of_another_configuration_or_optimizer(tmp_path):
    train(tmp_path)
    wanted = "config inner_steps: saved 1, wanted 2"
    with pytest.raises(checkpoints.CheckpointMismatchError, match=wanted):
        training.resume(tmp_path, fresh(), {"inner_steps": 2})
    other = mj.make_outer_step(LOSS, INNER, optax.sgd(0.1, momentum=0.9))
    with pytest.raises(checkpoints.CheckpointMismatchError, match=r"leaf .*opt_state"):
        training.resume(tmp_path, fresh(other), CONFIG)


def test_damaged_newest_checkpoint_falls_back_and_ends_with_the_same_bits(tmp_path, undisturbed):
    train(tmp_path)
    files = [file for file in (tmp_path / "checkpoints" / "00000014").rglob("*") if file.is_file()]
    victim = max(files, key=lambda file: file.stat().st_size)
    damaged = bytearray(victim.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    victim.write_bytes(damaged)
    message = rf"Fell back to the checkpoint of step 12: .*{victim.name}"
    with pytest.warns(UserWarning, match=message):
        progress = training.resume(tmp_path, fresh(), CONFIG)
    assert progress.step == 12
    assert_undisturbed(tmp_path, train(tmp_path, progress), undisturbed)


def test_no_sound_checkpoint_is_an_error_not_a_new_start(tmp_path):
    train(tmp_path)
    for manifest in tmp_path.glob("checkpoints/*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(checkpoints.CheckpointCorruptError, match=r"No checkpoint in .* verifies"):
        training.resume(tmp_path, fresh(), CONFIG)


@pytest.mark.parametrize("name", ["a [run]", "a*b?", "{a,b}", "100% ünï#$"])
def test_any_name_of_a_folder_will_do(tmp_path, undisturbed, name):
    """Also one that looks like a pattern; and the checkpoints may be moved to another."""
    train(tmp_path / name)
    assert_undisturbed(tmp_path / name, resumed(tmp_path / name), undisturbed)
    (tmp_path / name).rename(tmp_path / "[moved]")
    assert bits(training.resume(tmp_path / "[moved]", fresh(), CONFIG)) == undisturbed[0]
    (tmp_path / "[moved]").rename(tmp_path / "moved")
    assert bits(training.resume(tmp_path / "moved", fresh(), CONFIG)) == undisturbed[0]


def test_handlers_are_there_for_the_block_only_and_only_in_the_main_thread():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with stop_requests() as request:
        assert request.signal is None
        inside = [signal.getsignal(number) for number in numbers]
        assert not set(inside) & set(before)
        found = []

        def elsewhere():
            with stop_requests() as other:
                found.append((other.signal, *map(signal.getsignal, numbers)))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert found == [(None, *inside)]
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_first_signal_decides(capfd):
    """A second SIGTERM changes nothing: schedulers send several."""
    with stop_requests() as request:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal == signal.SIGTERM
    assert capfd.readouterr().err.count("Stopping") == 1


def test_log_is_read_up_to_a_line_that_was_cut(tmp_path):
    """Oracle: the lines written, at every place where the file can be cut."""
    log = tmp_path / "metrics.jsonl"
    written = [{"step": step, "loss": 1 / 3} for step in (1, 2)]
    for row in written:
        append_metrics(log, row)
    text = log.read_bytes()
    assert [json.loads(line) for line in text.splitlines()] == written
    first = len(text.splitlines()[0])
    for cut in range(len(text) + 1):
        log.write_bytes(text[:cut])
        whole = written[: (cut >= first) + (cut >= len(text) - 1)]
        assert read_metrics(log) == whole
        truncate_metrics(log, 1)
        append_metrics(log, written[1])
        assert read_metrics(log) == [*whole[:1], written[1]]
    log.write_bytes(b'{"step": 1\n{"step": 2}\n')
    for read in (read_metrics, lambda path: truncate_metrics(path, 1)):
        with pytest.raises(ValueError, match=r"line 1 of .*metrics.jsonl is not JSON"):
            read(log)
