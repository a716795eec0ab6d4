"""The outer loop on the device: sampling and many outer steps in one compiled call."""

import functools

import jax
import jax.numpy as jnp

from maml_jax import checks, devices
from maml_jax.inner_checks import check_count
from maml_jax.outer_state import OuterState, OuterStep, check_state
from maml_jax.outer_step import raise_if_nonfinite
from maml_jax.tasks import Sampler, Task, as_key, draw

# Tasks are drawn for as many steps at once as fit in this: little beside any cache or memory.
_DRAWN_BYTES = 2**20


def run_outer_steps(
    outer: OuterStep,
    sampler: Sampler,
    state: OuterState,
    key: jax.Array,
    *,
    num_steps: int,
    meta_batch_size: int,
) -> tuple[OuterState, dict[str, jax.Array]]:
    """Samples meta-batches and makes outer steps in one compiled call.

    Step s draws its tasks with `fold_in(key, s)`, s being `state.step`: calling this twice
    for 50 steps with the same key does what one call for 100 steps does.

    Args:
      outer: the outer step.
      sampler: a pure function from a key to one `Task`, or a `Grouped` one. Make it a
        `jax.tree_util.Partial` over large arrays, so that they are arguments of the compiled
        call and not constants in it; the samplers of `maml_jax.data` are.
      state: where to start; not consumed. From the second step on, the call updates a copy
        of its own in place.
      key: random key of the whole run, or an integer seed.
      num_steps: number of outer steps; static, at least 1.
      meta_batch_size: number `T` of tasks of each; static, at least 1.

    Returns:
      The state after the last step, and the metrics of each step, `[num_steps]`.

    Raises:
      NonFiniteTaskError: if a task was not finite and `outer` was made to raise. No step
        is made from there on; the error holds the state before that step.
      TypeError: if an argument is of the wrong kind.
      ValueError: if a number is below 1.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> import maml_jax as mj
      >>> model = mj.models.Mlp(features=(8, 1))
      >>> outer = mj.make_outer_step(
      ...     mj.losses.regression(model.apply), mj.maml(optax.sgd(0.01), 1), optax.adam(1e-3)
      ... )
      >>> state = outer.init(model.init(jax.random.key(1), jnp.zeros((1, 1))))
      >>> state, metrics = mj.run_outer_steps(
      ...     outer, mj.data.sinusoid(), state, jax.random.key(0), num_steps=3, meta_batch_size=2
      ... )
      >>> int(state.step), metrics["query_loss"].shape
      (3, (3,))
    """
    check_count("num_steps", num_steps, at_least=1)
    check_count("meta_batch_size", meta_batch_size, at_least=1)
    if not isinstance(outer, OuterStep):
        raise TypeError(
            f"outer must be an OuterStep, made by make_outer_step, got {type(outer).__name__}."
        )
    check_state(state)
    key = as_key(key)
    sampler = checks.as_sampler(sampler)
    scanned = _scanned_steps
    if outer.mesh is None and not checks.is_traced((sampler, state, key)):
        leaves, structure = jax.tree.flatten((sampler, state.params, key))
        shapes = tuple(jax.typeof(leaf) for leaf in leaves)
        if _fits_one_core(outer, meta_batch_size, structure, shapes):
            scanned = _scanned_on_one_core
    new_state, metrics = scanned(
        sampler, state, key, outer=outer, num_steps=num_steps, meta_batch_size=meta_batch_size
    )
    if not checks.is_traced(metrics):
        made = int(new_state.step) - int(state.step)
        if made < num_steps:

            def find():
                tasks = _tasks_of_step(
                    sampler, new_state.step, key, meta_batch_size=meta_batch_size
                )
                return outer.explain(new_state.params, tasks)

            raise_if_nonfinite(find, new_state, metrics["n_nonfinite"][made])
    return new_state, metrics


def _scan(sampler, state, key, *, outer, num_steps, meta_batch_size):
    def sampled(step):
        return _sampled(sampler, step, key, meta_batch_size, outer.mesh)

    at_once = _steps_per_draw(jax.eval_shape(sampled, state.step), num_steps)

    def several(state, _):
        first = state.step
        drawn = jax.vmap(sampled)(first + jnp.arange(at_once)) if at_once > 1 else None

        def one(state, _):
            # By the state's step, which stays where it is at a failure: so do the tasks.
            if drawn is None:
                return outer.update(state, sampled(state.step))
            return outer.update(state, jax.tree.map(lambda a: a[state.step - first], drawn))

        return jax.lax.scan(one, state, length=at_once)

    state, metrics = jax.lax.scan(several, state, length=num_steps // at_once)
    return state, jax.tree.map(lambda values: values.reshape(num_steps), metrics)


_STATIC = ("outer", "num_steps", "meta_batch_size")
_scanned_steps = jax.jit(_scan, static_argnames=_STATIC)

# What `layout.fits_one_core` chooses; its measurements are there.
_ONE_CORE = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
_scanned_on_one_core = jax.jit(_scan, static_argnames=_STATIC, compiler_options=_ONE_CORE)


@functools.lru_cache(maxsize=256)
def _fits_one_core(outer, meta_batch_size, structure, shapes) -> bool:
    """Asks the outer step once for each kind of meta-batch: it traces a task."""
    sampler, params, key = structure.unflatten(shapes)
    indices = jax.ShapeDtypeStruct((meta_batch_size,), jnp.result_type(int))
    tasks = jax.eval_shape(draw, sampler, key, indices)
    checks.check_meta_batch(tasks)
    return outer.fits_one_core(params, tasks)


def _steps_per_draw(tasks: Task, num_steps: int) -> int:
    """Chooses for how many steps tasks are drawn at once: a divisor of the number of steps.

    Small tasks are cheap to hold, and the fixed cost of drawing them is then paid once.
    """
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tasks))
    most = max(1, _DRAWN_BYTES // max(1, num_bytes))
    return max(n for n in range(1, num_steps + 1) if num_steps % n == 0 and n <= most)


@functools.partial(jax.jit, static_argnames="meta_batch_size")
def _tasks_of_step(sampler, step, key, *, meta_batch_size):
    return _sampled(sampler, step, key, meta_batch_size, None)


def _sampled(sampler, step, key, meta_batch_size, mesh):
    """Each device draws its own tasks, which are the same on any number of devices."""
    key = jax.random.fold_in(key, step)

    def own(shared, indices):
        sampler, key = shared
        return draw(sampler, key, indices)

    return devices.on_devices(own, mesh)((sampler, key), jnp.arange(meta_batch_size))
