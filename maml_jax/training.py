"""The training loop: compiled calls, a log, validation, checkpoints, and a clean stop.

Everything that a run needs to go on is in its folder:

    metrics.jsonl    one line per compiled call, and one per validation
    checkpoints/     the newest two, each with a digest per leaf and per file

The loop stops only between compiled calls, which always end at multiples of
`steps_per_call` or at the last step: a resumed run makes the same calls as one that was
never stopped, and so ends with the same bits.

A call's line has the step after it, its seconds (of a first call, compilation included)
and what `average_metrics` gives.
"""

import dataclasses
import functools
import itertools
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maml_jax import checkpoints, exit_codes, processes
from maml_jax.diagnosis import Diagnosis
from maml_jax.evaluation import Evaluation
from maml_jax.inner_loop import MetaParams
from maml_jax.metrics_log import append_metrics, average_metrics, truncate_metrics
from maml_jax.nonfinite import NonFiniteTaskError
from maml_jax.outer_loop import run_outer_steps
from maml_jax.outer_state import OuterState, OuterStep
from maml_jax.progress import Progress as Progress
from maml_jax.progress import resume as resume
from maml_jax.progress import start as start
from maml_jax.schedule import Schedule
from maml_jax.stop_signals import stop_requests
from maml_jax.tasks import Sampler

_DEAD_STEPS = 10


class TrainingStopped(Exception):
    """A run was asked to stop and has saved its state.

    Attributes:
      step: number of outer steps done and saved.
      exit_code: 75 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name} after step {step}")
        self.step = step
        self.exit_code = exit_codes.AFTER_SIGNAL[signal.Signals(signal_number)]


class DivergedError(FloatingPointError):
    """No task of ten or more meta-batches in a row had a finite loss and gradient."""


Report = Callable[[int, dict[str, float], Evaluation | None], None]
"""`(step, metrics, evaluation or None)`: called after each compiled call and validation."""


def train(
    outer: OuterStep,
    sampler: Sampler,
    progress: Progress,
    key: jax.Array,
    *,
    run_dir: str | pathlib.Path,
    schedule: Schedule,
    validate: Callable[[MetaParams], Evaluation] | None = None,
    diagnose: Callable[[OuterState], Diagnosis] | None = None,
    report: Report = lambda step, metrics, evaluation: None,
    config: dict[str, Any] | None = None,
) -> Progress:
    """Trains from `progress` to the end of the schedule, saving on the way.

    On SIGTERM or Ctrl-C it saves at the end of the compiled call that is running, and of
    the validation if one is due. Several processes (`maml_jax.processes`) all call it; a
    signal to one stops all at the same step, and process 0 writes.

    It takes no lock, as the caller also reads the folder before and writes to it after: a script
    that may be started twice holds `maml_jax.run_lock.held(run_dir)` around all of it, as
    `maml-jax train` does.

    Args:
      outer: the outer step.
      sampler: the sampler of training tasks.
      progress: where to start, from `start` or `resume`.
      key: random key of the whole run's tasks.
      run_dir: folder of the log and the checkpoints; made if missing.
      schedule: numbers of steps.
      validate: from meta-parameters to an `Evaluation` on validation tasks; the best are
        kept. None keeps the last.
      diagnose: from an outer state to a `Diagnosis`, for the log, where the schedule asks.
      report: told of each call and each validation.
      config: settings saved with every checkpoint, and checked by `resume`.

    Returns:
      The progress after the last step.

    Raises:
      TrainingStopped: after a stop signal, when the state is saved; also when it came
        during the last call.
      FileExistsError: if the folder holds a sound checkpoint of a later step.
      ValueError: if the folder's log has a broken line before its last.
      NonFiniteTaskError: if `outer` was made to raise and a task was not finite; the state
        before that compiled call is saved.
      DivergedError: if no task counted in ten or more outer steps in a row, up to the end
        of a call; the last checkpoint is from before that call.
      CheckpointWriteError: if the folder cannot be written, before the first step; or the
        disk is full, when the older checkpoints stay.
      OSError: if the log cannot be written, with its path.
      ProcessError: in the other processes, if process 0 fails.

    Example:
      >>> import tempfile
      >>> import jax, jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> from maml_jax import training
      >>> loss_fn = mj.losses.regression(lambda params, inputs, mask: inputs @ params)
      >>> outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.01), 1), optax.sgd(0.01))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     progress = training.train(
      ...         outer, mj.data.sinusoid(), training.start(outer, jnp.zeros((1, 1))),
      ...         jax.random.key(0), run_dir=folder,
      ...         schedule=training.Schedule(num_steps=2, meta_batch_size=2),
      ...     )
      >>> progress.step
      2
    """
    saved, log = pathlib.Path(run_dir) / "checkpoints", pathlib.Path(run_dir) / "metrics.jsonl"
    processes.first_does(functools.partial(_prepare, saved, log, progress))
    save = functools.partial(checkpoints.save, saved, config=config or {})
    dead_steps = 0
    with stop_requests() as request:
        for call in itertools.count():
            if progress.step >= schedule.num_steps:
                break
            before, began = progress, time.monotonic()
            try:
                progress, metrics = _one_call(
                    outer, sampler, progress, key, schedule=schedule, keep_last=validate is None
                )
            except NonFiniteTaskError:
                save(before.step, before)
                raise
            dead_steps = _check_alive(metrics["n_valid"], dead_steps, progress.step)
            averages = average_metrics(metrics)
            seconds = time.monotonic() - began
            _log(log, {"step": progress.step, "seconds": seconds, **averages})
            report(progress.step, averages, None)
            due = functools.partial(schedule.is_due, before=before.step, after=progress.step)
            if validate is not None and due(schedule.validate_every):
                progress = _validated(progress, validate, report, log)
            if diagnose is not None and due(schedule.diagnose_every):
                found = diagnose(progress.state).as_dict()
                _log(log, {"step": progress.step, "diagnosis": found})
            stopped_by = request.agreed(call)
            if stopped_by is not None or due(schedule.checkpoint_every):
                save(progress.step, progress)
            if stopped_by is not None:
                raise TrainingStopped(progress.step, stopped_by)
    if request.signal is not None and not processes.several():
        # It came while the last checkpoint was being saved, when nobody asked any more.
        raise TrainingStopped(progress.step, request.signal)
    return progress


def _prepare(saved: pathlib.Path, log: pathlib.Path, progress: Progress) -> None:
    """Makes the folder ready for a run that goes on from a step."""
    checkpoints.check_writable(saved, 2 * _num_bytes(progress))
    checkpoints.clear_unfinished(saved)
    later = [step for step in checkpoints.steps(saved) if step > progress.step]
    for step in later:  # Of another run, or this one's: `resume` would take it for this one's.
        if checkpoints.is_sound(saved, step):
            raise FileExistsError(
                f"{saved} holds step {step}, and training would begin after {progress.step}: go on "
                "with training.resume, or name another folder."
            )
    truncate_metrics(log, progress.step)


def _log(log: pathlib.Path, row: dict[str, Any]) -> None:
    """Appends a line to the log, which process 0 keeps."""
    if processes.is_first():
        append_metrics(log, row)


def _one_call(
    outer: OuterStep,
    sampler: Sampler,
    progress: Progress,
    key: jax.Array,
    *,
    schedule: Schedule,
    keep_last: bool,
) -> tuple[Progress, dict[str, np.ndarray]]:
    """Makes the outer steps of one call; gives the metrics of each."""
    state, metrics = run_outer_steps(
        outer,
        sampler,
        progress.state,
        key,
        num_steps=schedule.call_end(progress.step) - progress.step,
        meta_batch_size=schedule.meta_batch_size,
    )
    progress = dataclasses.replace(progress, state=state)
    if keep_last:
        best_step = np.int64(progress.step)
        progress = dataclasses.replace(progress, best_params=state.params, best_step=best_step)
    return progress, jax.device_get(metrics)


def _validated(progress: Progress, validate, report: Report, log: pathlib.Path) -> Progress:
    """Validates, logs, and keeps the parameters if they are the best so far."""
    evaluation = validate(progress.state.params)
    _log(log, {"step": progress.step, "validation": evaluation.as_dict()})
    higher_is_better = evaluation.metric == "accuracy"
    best = float(progress.best_value)
    better = evaluation.mean > best if higher_is_better else evaluation.mean < best
    if better or np.isnan(best):
        progress = dataclasses.replace(
            progress,
            best_params=progress.state.params,
            best_value=np.float64(evaluation.mean),
            best_step=np.int64(progress.step),
        )
    report(progress.step, {}, evaluation)
    return progress


def _check_alive(n_valid: np.ndarray, dead_steps: int, step: int) -> int:
    """Counts the meta-batches in a row, up to now, of which no task counted."""
    alive = np.flatnonzero(n_valid)
    dead_steps = len(n_valid) - 1 - int(alive[-1]) if len(alive) else dead_steps + len(n_valid)
    if dead_steps >= _DEAD_STEPS:
        raise DivergedError(
            f"no task had a finite loss and gradient in the last {dead_steps} outer steps, up to "
            f"step {step}: the run has diverged; start a new one with a lower inner or outer "
            "learning rate, or with gradients clipped."
        )
    return dead_steps


def _num_bytes(tree: Any) -> int:
    return sum(getattr(leaf, "nbytes", 8) for leaf in jax.tree.leaves(tree))
