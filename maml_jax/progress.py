"""Where a run is: what a checkpoint holds, how a run begins, and how it is taken up again."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from maml_jax import checkpoints
from maml_jax.inner_loop import MetaParams
from maml_jax.outer_state import OuterState, OuterStep
from maml_jax.tasks import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: what a checkpoint holds.

    Attributes:
      state: the outer state.
      best_params: meta-parameters with the best validation so far; without validation,
        the last ones.
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


def resume(run_dir: str | pathlib.Path, progress: Progress, config: dict[str, Any]) -> Progress:
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
      CheckpointVersionError: if the newest was written in a newer format.
      ProcessError: in the other processes, if process 0 raises.

    Example:
      >>> from maml_jax import training
      >>> training.resume("no_such_run", "as it was", {})
      'as it was'
    """
    saved = pathlib.Path(run_dir) / "checkpoints"
    restored = checkpoints.restore(saved, progress, config=config)
    return progress if restored is None else restored.state
