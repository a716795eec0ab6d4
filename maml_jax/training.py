"""The training loop: compiled calls, a log, validation, checkpoints, and a clean stop.

Everything that a run needs to go on is in its folder:

    metrics.jsonl    one line per compiled call, and one per validation
    checkpoints/     the newest two, each with a digest per leaf and per file

The loop stops only between compiled calls, which always start at multiples of
`steps_per_call`: a resumed run makes the same calls as one that was never stopped.
"""

import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from maml_jax import checkpoints
from maml_jax.evaluation import Evaluation
from maml_jax.inner_checks import check_count
from maml_jax.inner_loop import MetaParams
from maml_jax.metrics_log import append_metrics, truncate_metrics
from maml_jax.outer_loop import run_outer_steps
from maml_jax.outer_step import OuterState, OuterStep
from maml_jax.stop_signals import stop_requests
from maml_jax.tasks import Params, TaskSampler

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
"""What a process that stopped on a signal should exit with; 75 means "resume me"."""

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
        self.exit_code = EXIT_CODES[signal.Signals(signal_number)]


class DivergedError(FloatingPointError):
    """No task of ten meta-batches running had a finite loss and gradient."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers of a training loop, all in outer steps.

    Attributes:
      num_steps: how many outer steps in all; at least 1.
      meta_batch_size: tasks per outer step; at least 1.
      steps_per_call: outer steps per compiled call; the log has one line for each call.
      validate_every: validate at the first call's end after so many steps, and at the end.
      checkpoint_every: save likewise.

    Example:
      >>> from maml_jax.training import Schedule
      >>> Schedule(num_steps=1000, meta_batch_size=32).steps_per_call
      50
    """

    num_steps: int
    meta_batch_size: int
    steps_per_call: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_count(field.name, getattr(self, field.name), at_least=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: what a checkpoint holds.

    Attributes:
      state: the outer state.
      best_params: meta-parameters with the best validation so far.
      best_value: their headline metric; NaN before the first validation.
      best_step: their step.
    """

    state: OuterState
    best_params: MetaParams
    best_value: Any
    best_step: Any

    @property
    def step(self) -> int:
        """Number of outer steps done."""
        return int(self.state.step)


Report = Callable[[int, dict[str, float], Evaluation | None], None]
"""`(step, metrics, evaluation or None)`: called after each compiled call and validation."""


def start(outer: OuterStep, params: Params) -> Progress:
    """Gives the progress of a run that has made no step.

    Args:
      outer: the outer step.
      params: the initial parameters.

    Returns:
      The progress, its best parameters being the initial ones.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> from maml_jax import training
      >>> loss_fn = mj.losses.regression(lambda params, inputs, mask: inputs @ params)
      >>> outer = mj.make_outer_step(loss_fn, mj.maml(optax.sgd(0.1), 1), optax.sgd(0.1))
      >>> training.start(outer, jnp.zeros((1, 1))).step
      0
    """
    state = outer.init(params)
    return Progress(
        state=state,
        best_params=state.params,
        best_value=np.float64(np.nan),
        best_step=np.int64(0),
    )


def resume(run_dir: pathlib.Path, progress: Progress, config: dict[str, Any]) -> Progress:
    """Reads the newest sound checkpoint of a run, if it has one.

    Args:
      run_dir: the run's folder.
      progress: what `start` gave; its arrays say what to expect.
      config: the run's settings, which must be those of the checkpoint.

    Returns:
      The progress from which to go on.

    Raises:
      CheckpointCorruptError: if there are checkpoints, but none is sound.
      CheckpointMismatchError: if they are of another model, optimizer or configuration.

    Example:
      >>> import pathlib
      >>> from maml_jax import training
      >>> training.resume(pathlib.Path("no_such_run"), "as it was", {})
      'as it was'
    """
    restored = checkpoints.restore(run_dir / "checkpoints", progress, config=config)
    return progress if restored is None else restored.state


def train(
    outer: OuterStep,
    sampler: TaskSampler,
    progress: Progress,
    key: jax.Array,
    *,
    run_dir: str | pathlib.Path,
    schedule: Schedule,
    validate: Callable[[MetaParams], Evaluation] | None = None,
    report: Report = lambda step, metrics, evaluation: None,
    config: dict[str, Any] | None = None,
) -> Progress:
    """Trains from `progress` to the end of the schedule, saving on the way.

    On SIGTERM or Ctrl-C it saves at the end of the compiled call that is running.

    Args:
      outer: the outer step.
      sampler: the sampler of training tasks.
      progress: where to start, from `start` or `resume`.
      key: random key of the whole run's tasks.
      run_dir: folder of the log and the checkpoints; made if missing.
      schedule: numbers of steps.
      validate: from meta-parameters to an `Evaluation` on validation tasks; the best are
        kept. None keeps the last.
      report: told of each call and each validation.
      config: settings saved with every checkpoint, and checked by `resume`.

    Returns:
      The progress after the last step.

    Raises:
      TrainingStopped: after a stop signal, when the state is saved.
      NonFiniteTaskError: if `outer` was made to raise and a task was not finite.
      DivergedError: if no task counted for ten outer steps running; the last checkpoint is
        from before.
      CheckpointWriteError: if the folder cannot be written, before the first step; or the
        disk is full, when the older checkpoints stay.

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
    run_dir = pathlib.Path(run_dir)
    saved = run_dir / "checkpoints"
    checkpoints.check_writable(saved, 2 * _num_bytes(progress))
    checkpoints.clear_unfinished(saved)
    log = run_dir / "metrics.jsonl"
    truncate_metrics(log, progress.step)
    dead_steps = 0
    with stop_requests() as request:
        while progress.step < schedule.num_steps:
            began, before = time.monotonic(), progress.step
            state, metrics = run_outer_steps(
                outer,
                sampler,
                progress.state,
                key,
                num_steps=min(schedule.steps_per_call, schedule.num_steps - before),
                meta_batch_size=schedule.meta_batch_size,
            )
            progress = dataclasses.replace(progress, state=state)
            metrics = jax.device_get(metrics)
            dead_steps = _check_alive(metrics["n_valid"], dead_steps, progress.step)
            averages = {name: float(np.mean(values)) for name, values in metrics.items()}
            seconds = time.monotonic() - began
            append_metrics(log, {"step": progress.step, "seconds": seconds, **averages})
            report(progress.step, averages, None)
            due = _due(before, progress.step, schedule)
            if validate is not None and due(schedule.validate_every):
                progress = _validated(progress, validate, report, log)
            if request.signal is not None or due(schedule.checkpoint_every):
                checkpoints.save(saved, progress.step, progress, config=config or {})
            if request.signal is not None and progress.step < schedule.num_steps:
                raise TrainingStopped(progress.step, request.signal)
    return progress


def _due(before: int, after: int, schedule: Schedule) -> Callable[[int], bool]:
    """Says whether a multiple of a number of steps, or the end, was just reached."""
    return lambda every: after // every > before // every or after >= schedule.num_steps


def _validated(progress: Progress, validate, report: Report, log: pathlib.Path) -> Progress:
    """Validates, logs, and keeps the parameters if they are the best so far."""
    evaluation = validate(progress.state.params)
    append_metrics(log, {"step": progress.step, "validation": evaluation.as_dict()})
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
    """Counts the meta-batches running, up to now, of which no task counted."""
    alive = np.flatnonzero(n_valid)
    dead_steps = dead_steps + len(n_valid) if not len(alive) else len(n_valid) - 1 - alive[-1]
    if dead_steps >= _DEAD_STEPS:
        raise DivergedError(
            f"no task had a finite loss and gradient in the last {dead_steps} outer steps before "
            f"step {step}: the run has diverged; lower the inner or outer learning rate and "
            "resume from the last checkpoint."
        )
    return dead_steps


def _num_bytes(tree: Any) -> int:
    return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
