"""What an outer step computes: pure functions of its state and a meta-batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from maml_jax import gains, placement
from maml_jax.aggregation import Aggregation, Evidence, Level, mean
from maml_jax.aggregation.resolve import valid_tasks
from maml_jax.gains import Gain
from maml_jax.inner_loop import InnerLoop, MetaParams, query_loss, task_loss
from maml_jax.layout import TaskAxis, fits_one_core, layout_of
from maml_jax.losses import LossFn
from maml_jax.outer_state import OuterState, check_carried
from maml_jax.reduction import Reduced, reduce_meta_batch
from maml_jax.tasks import Params, Task, num_tasks_of

OBSERVER = dataclasses.replace(mean(), level=Level.GRAM)
"""What evidence is reduced with: a mean that is shown all that a rule can be."""

_NOISE_OBSERVER = dataclasses.replace(OBSERVER, splits_queries=True)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OuterPrograms:
    """The choices that make an outer step, and the programs that follow from them.

    Attributes:
      loss_fn: loss of parameters on one set of examples.
      inner: the inner loop.
      optimizer: the outer optimizer.
      rule: the aggregation.
      gain: how far a step goes for the number of tasks, or None.
      task_axis: how many tasks run side by side.
      mesh: the devices that share the tasks; None is the default device.
      on_nonfinite: "raise", "skip" or "propagate".
    """

    loss_fn: LossFn
    inner: InnerLoop
    optimizer: optax.GradientTransformationExtraArgs
    rule: Aggregation
    gain: Gain | None
    task_axis: TaskAxis
    mesh: Mesh | None
    on_nonfinite: str

    def init(self, params: Params) -> OuterState:
        """Makes the first state, and places it on the mesh."""
        meta_params = self.inner.init(jax.tree.map(jnp.asarray, params))
        state = OuterState(
            params=meta_params,
            opt_state=self.optimizer.init(meta_params),
            aggregation_state=self.rule.init(),
            step=jnp.zeros((), jnp.int32),
            gain_state=self._new_gain_state(),
        )
        return placement.place(state, self.mesh)

    def reduce(
        self,
        state: OuterState,
        tasks: Task,
        weights: jax.Array | None,
        mask: jax.Array | None,
        *,
        observer: Aggregation | None = None,
    ) -> Reduced:
        """Adapts to every task and reduces their gradients.

        Args:
          state: the state before the step.
          tasks: a meta-batch, arrays `[T, N, ...]`.
          weights: `[T]`, or None.
          mask: booleans `[T]`, or None.
          observer: a rule to reduce by instead, which leaves out tasks that are not finite.

        Returns:
          The gradient, and what came with it.
        """
        plain = weights is None and mask is None
        return reduce_meta_batch(
            functools.partial(task_loss, self.inner, self.loss_fn),
            state.params,
            tasks,
            aggregation=observer or self.rule,
            state=state.aggregation_state,
            measures_spread=self.gain is not None and self.gain.needs_spread,
            valid=None if plain else valid_tasks(num_tasks_of(tasks), weights=weights, mask=mask),
            weights=weights,
            layout=layout_of(
                self.task_axis, self._adapted_loss, state.params, tasks, mesh=self.mesh
            ),
            skip_nonfinite=observer is not None or self.on_nonfinite == "skip",
            step=state.step,
        )

    def update(
        self, state: OuterState, tasks: Task, weights: jax.Array | None, mask: jax.Array | None
    ) -> tuple[OuterState, dict[str, jax.Array]]:
        """Reduces the gradients and makes the optimizer's step; arguments as of `reduce`."""
        opt_state = jax.eval_shape(self.optimizer.init, state.params)
        check_carried("opt_state", state.opt_state, opt_state)
        check_carried("aggregation_state", state.aggregation_state, jax.eval_shape(self.rule.init))
        check_carried("gain_state", state.gain_state, jax.eval_shape(self._new_gain_state))
        new_state, metrics = self._step(state, self.reduce(state, tasks, weights, mask))
        return placement.keep_in_place(new_state, self.mesh), metrics

    def observe(
        self, state: OuterState, tasks: Task, mask: jax.Array | None, *, noise: bool
    ) -> Evidence:
        """Gives the evidence of the tasks, whatever the rule; with `noise` also their noise."""
        observer = _NOISE_OBSERVER if noise else OBSERVER
        reduced = self.reduce(state, tasks, None, mask, observer=observer)
        return placement.known_everywhere(reduced.evidence, self.mesh)

    def fits_one_core(self, params: MetaParams, tasks: Task) -> bool:
        """Tells whether the tasks, or their shapes, are best done by one CPU core."""
        return fits_one_core(self._adapted_loss, params, tasks, num_tasks_of(tasks))

    def _adapted_loss(self, params, task):
        """Memory is judged by it: Reptile's own loss keeps nothing, its adaptation does."""
        return query_loss(self.inner, self.loss_fn, params, task)

    def _new_gain_state(self):
        return () if self.gain is None else gains.start(self.gain)

    def _step(self, state: OuterState, reduced: Reduced) -> tuple[OuterState, dict[str, jax.Array]]:
        """Steps, unless no task counts or what would be applied is not finite."""
        metrics, gain_state = reduced.metrics, state.gain_state
        updates, opt_state = self.optimizer.update(
            reduced.grads, state.opt_state, state.params, value=metrics["query_loss"]
        )
        if self.gain is not None:
            factor, gain_state = gains.apply(self.gain, reduced.counted_spread, gain_state)
            updates = jax.tree.map(lambda u: (factor * u).astype(u.dtype), updates)
            metrics = {**metrics, "step_factor": factor, "progress": gain_state.progress}
        params = optax.apply_updates(state.params, updates)
        moved = (params, opt_state, reduced.aggregation_state, gain_state)
        stayed = (state.params, state.opt_state, state.aggregation_state, state.gain_state)
        sound = jnp.array(True)
        if self.on_nonfinite == "raise":
            sound = metrics["n_nonfinite"] == 0
        finite = jnp.isfinite(metrics["grad_norm"]) | (self.on_nonfinite == "propagate")
        accepted = sound & finite & (metrics["n_valid"] > 0)
        params, opt_state, aggregation_state, gain_state = jax.tree.map(
            lambda new, old: jnp.where(accepted, new, old), moved, stayed
        )
        new_state = OuterState(
            params=params,
            opt_state=opt_state,
            aggregation_state=aggregation_state,
            step=state.step + sound.astype(state.step.dtype),
            gain_state=gain_state,
        )
        return new_state, metrics
