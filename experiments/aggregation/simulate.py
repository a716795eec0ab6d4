"""One compiled loop over outer steps, for all seeds and learning rates of an arm at once.

In shapes: `S` seeds, `L` learning rates, `B` tasks of a meta-batch, `M` monitored numbers,
`F` snapshots. The tasks of step t come from a key of (seed, t) alone: the same for every
arm and learning rate (common random numbers).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax.aggregation import aggregate
from maml_jax.spread import spread_of

TAIL = 0.8  # risks are averaged over the last 20% of the horizon


class Family(NamedTuple):
    """A distribution of tasks and a model, as pure functions; `setting` is a traced tree.

    Attributes:
      init: `key -> params`.
      draw: `(key, setting, num_tasks) -> batch`, a dict or tree with tasks on axis 0; a dict
        may hold "mask" `[B]` and "task_ids" `[B]`.
      gradients: `(params, setting, batch) -> (losses [B], task_grads [B, ...])`.
      monitor: `(params, setting) -> [M]`, cheap and exact; the first one is the risk.
    """

    init: Callable
    draw: Callable
    gradients: Callable
    monitor: Callable


def linear(fraction):
    """Learning rate over time: from 1 to 0, by the fraction of the horizon that is over."""
    return jnp.maximum(1.0 - fraction, 0.0)


def constant(fraction):
    """Learning rate over time: 1."""
    return jnp.ones_like(fraction)


class Outcome(NamedTuple):
    """What a simulation leaves.

    Attributes:
      tail: monitored numbers `[S, L, M]`, averaged over the last 20% of the horizon.
      params: final parameters, a tree `[S, L, ...]`.
      snapshots: parameters where the fractions were reached, a tree `[S, L, F, ...]`.
      steps: steps taken `[S, L]`.
      trace: `[T, S, L, M + 3]` where asked for: the monitored numbers before each step, then a,
        q and the norm of the aggregate; NaN after the end. Otherwise None.
    """

    tail: Any
    params: Any
    snapshots: Any
    steps: Any
    trace: Any


def simulate(family, arm, *, setting, num_tasks, num_steps, learning_rates, seeds, **options):
    """Runs an arm for every seed and learning rate.

    Args:
      family: the `Family`.
      arm: the `arms.Arm`.
      setting: tree of numbers that the family understands, traced: new values of it do not
        compile anew.
      num_tasks: B, static.
      num_steps: the horizon, in steps, or in progress for arms that count it. Static.
      learning_rates: `[L]`.
      seeds: integers `[S]`.
      **options: `schedule` (`linear`), `fractions` of the horizon for snapshots, `trace`.

    Returns:
      An `Outcome` of NumPy arrays.
    """
    trace_steps = num_steps if options.pop("trace", False) else 0
    run = compiled(family, arm, num_tasks, trace_steps=trace_steps, **options)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    rates = jnp.asarray(learning_rates, float)
    setting = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), setting)
    return jax.tree.map(np.asarray, run(setting, rates, keys, jnp.asarray(num_steps, float)))


@functools.lru_cache(maxsize=8)
def compiled(family, arm, num_tasks, *, schedule=linear, fractions=(), trace_steps=0):
    """Compiles the loop once for an arm and a meta-batch size; the horizon is traced."""
    begin = functools.partial(_begin, family, arm, len(fractions))
    advance = functools.partial(_advance, family, arm, schedule, fractions)
    begin_all = jax.vmap(jax.vmap(begin, (None, 0, None)), (0, None, None))
    over_rates = jax.vmap(advance, (0, 0, None, None, None, None))
    advance_all = jax.vmap(over_rates, (0, None, None, None, 0, 0))

    def run(setting, rates, keys, horizon):
        carry = begin_all(keys, rates, setting)
        width = carry["tail"].shape[-1] + 3
        trace = jnp.full((trace_steps, len(keys), len(rates), width), jnp.nan)

        def draw(key, index):
            task_key, rule_key = jax.random.split(jax.random.fold_in(key, index))
            return family.draw(task_key, setting, num_tasks), rule_key

        def body(state):
            index, carry, trace = state
            batches, rule_keys = jax.vmap(draw, (0, None))(keys, index)
            carry, seen = advance_all(carry, rates, setting, horizon, batches, rule_keys)
            return index + 1, carry, trace.at[index].set(seen) if trace_steps else trace

        def going(state):
            return (state[0] < horizon) & (state[1]["progress"] < horizon).any()

        _, carry, trace = jax.lax.while_loop(going, body, (jnp.zeros((), int), carry, trace))
        return Outcome(
            tail=carry["tail"] / carry["tail_steps"][..., None],  # 0/0: diverged before
            params=carry["params"],
            snapshots=carry["snapshots"],
            steps=carry["steps"],
            trace=trace if trace_steps else None,
        )

    return jax.jit(run)


def _begin(family, arm, num_snapshots, key, rate, setting):
    """What one replica carries from step to step, at the start; `rate` only shapes it."""
    del rate
    params = family.init(jax.random.fold_in(key, 2**31))
    return {
        "params": params,
        "optimizer": arm.optimizer.init(params),
        "rule": arm.rule.init(),
        "gain": () if arm.gain is None else arm.gain.init(),
        "progress": jnp.zeros(()),
        "steps": jnp.zeros((), int),
        "tail": jnp.zeros_like(family.monitor(params, setting)),
        "tail_steps": jnp.zeros(()),
        "snapshots": jax.tree.map(lambda leaf: jnp.stack([leaf] * num_snapshots), params)
        if num_snapshots
        else (),
    }


def _advance(family, arm, schedule, fractions, carry, rate, setting, horizon, batch, key):
    """One outer step of one replica; a replica at its horizon stays as it is."""
    over = carry["progress"] / horizon
    passed = over if arm.schedule_by == "progress" else carry["steps"] / horizon
    updates, gain, states, parts = outer_step(family, arm, carry, setting, batch, key)
    scale = rate * schedule(passed) * gain**arm.power
    params = jax.tree.map(lambda p, u: p - (scale * u).astype(p.dtype), carry["params"], updates)
    progress = carry["progress"] + gain
    monitored = family.monitor(params, setting)
    in_tail = (progress >= TAIL * horizon).astype(float)
    after = {
        **states,
        "params": params,
        "progress": progress,
        "steps": carry["steps"] + 1,
        "tail": carry["tail"] + in_tail * monitored,
        "tail_steps": carry["tail_steps"] + in_tail,
        "snapshots": keep_snapshots(carry["snapshots"], params, over < jnp.asarray(fractions)),
    }
    active = over < 1
    carry = jax.tree.map(lambda new, old: jnp.where(active, new, old), after, carry)
    return carry, jnp.where(active, jnp.concatenate([monitored, parts]), jnp.nan)


def outer_step(family, arm, carry, setting, batch, key):
    """Makes the update of one replica, without learning rate and gain.

    Returns:
      The updates, the gain r, a dict of new states, and `[a, q, ‖aggregate‖]`.
    """
    params = carry["params"]
    losses, task_grads = family.gradients(params, setting, batch)
    known = batch if isinstance(batch, dict) else {}
    given = {name: known[name] for name in ("mask", "num_query") if name in known}
    if arm.weights is not None:
        given["weights"] = arm.weights(batch)
    if arm.noise is not None:
        given["noise"] = arm.noise(batch)
    if arm.rule.num_task_ids is not None:
        given["task_ids"] = known["task_ids"]
    if arm.rule.seed is not None:
        given["key"] = key
    grads, rule_state = aggregate(arm.rule, task_grads, losses=losses, state=carry["rule"], **given)
    valid = given.get("mask", jnp.ones(losses.shape, bool))
    spread = spread_of(task_grads, valid)
    gain_state, gain = (), jnp.ones(())
    if arm.gain is not None:
        gain, gain_state = arm.gain.measure(spread, carry["gain"])
    parts = jnp.stack([spread.mean_square, spread.square_mean, optax.tree.norm(grads)])
    if arm.l2:
        grads = jax.tree.map(lambda g, p: g + arm.l2 * p, grads, params)
    updates, optimizer_state = arm.optimizer.update(grads, carry["optimizer"], params)
    states = {"optimizer": optimizer_state, "rule": rule_state, "gain": gain_state}
    return updates, gain, states, parts


def keep_snapshots(snapshots, params, not_yet):
    """Overwrites the snapshots `[F, ...]` whose mark `[F]` had not been reached."""
    if snapshots == ():
        return ()

    def keep(old, new):
        return jnp.where(not_yet.reshape(-1, *[1] * new.ndim), new[None], old)

    return jax.tree.map(keep, snapshots, params)
