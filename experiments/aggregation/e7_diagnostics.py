"""E7: what the gradients of a meta-batch say of themselves, over training (D, κ, r, ρ).

a = mean ‖gᵢ‖², q = ‖ḡ‖², o = (B q - a)/(B - 1): D = B q/a is by what AdaScale divides the sum,
r = a/q its gain, κ = o/a the coherence, (a - o)/o the gradient noise scale.
"""

import functools
import itertools

import arms
import benches
import e2_protocols
import jax
import jax.numpy as jnp
import numpy as np
from records import cell
from simulate import simulate

from maml_jax import aggregation
from maml_jax.aggregation.ladder import contract, sq_norms

POINTS = 24
ICC_BATCHES, ICC_BATCH = 1024, 16


def run(budget):
    """Runs every cell that is not on disk yet; needs the learning rates of E2."""
    path = budget.folder / "e7.json"
    both = (benches.f2(budget), "adam"), (benches.f1(budget), "sgd")
    for bench, name in budget.few(both, 1):
        optimizer = e2_protocols.optimizers(bench)[name][0]
        base = e2_protocols.tuned_at_one(
            bench, budget.folder / f"e2_{bench.name}.json", name, optimizer
        )
        arm = arms.linear_arm("mean", aggregation.mean(), optimizer)
        for num_tasks in budget.few(bench.sizes[1:], 1):
            for rho in budget.few(bench.rhos, 1):
                settings = {
                    **e2_protocols.settings_of(bench, name),
                    "rate": base["best_rate"],
                    "batches": ICC_BATCHES,
                }
                compute = functools.partial(_moments, bench, arm, num_tasks, rho, settings)
                cell(path, f"{bench.name} {name} B={num_tasks} rho={rho}", settings, compute)


def _moments(bench, arm, num_tasks, rho, settings):
    """Means of a and q over seeds at log-spaced steps; on F2 also the measured ICC."""
    outcome = simulate(
        bench.family,
        arm,
        setting=bench.setting(rho=rho),
        num_tasks=num_tasks,
        num_steps=settings["steps"],
        learning_rates=[settings["rate"]],
        seeds=range(settings["seeds"][1]),
        trace=True,
        **bench.options,
    )
    square, mean_square = outcome.trace[:, :, 0, -3], outcome.trace[:, :, 0, -2]
    edges = np.unique(np.geomspace(1, settings["steps"], POINTS + 1).astype(int)) - 1
    spans = [slice(low, high) for low, high in itertools.pairwise(edges)]
    tail = slice(int(0.8 * settings["steps"]), None)
    values = {
        "step": [span.start + 1 for span in spans],
        "a": [np.nanmedian(square[span].mean(0)) for span in spans],
        "q": [np.nanmedian(mean_square[span].mean(0)) for span in spans],
        "first_gain": square[0].mean() / mean_square[0].mean(),
        "last_gain": np.nanmean(square[tail]) / np.nanmean(mean_square[tail]),
    }
    if bench.name == "f2":
        middle = jax.tree.map(lambda leaf: jnp.asarray(leaf[0, 0, -1]), outcome.snapshots)
        start = bench.family.init(jax.random.key(0))
        values["icc"] = {
            "start": measured_correlation(bench, start, rho),
            "end": measured_correlation(bench, middle, rho),
        }
    return values


def measured_correlation(bench, params, rho):
    """ICC of the gradients at θ, from clustered meta-batches and independent ones.

    ρ = (o - ‖μ‖²)/(a - ‖μ‖²), with o the mean inner product of two tasks of one clustered
    meta-batch, and ‖μ‖² that of two tasks of independent ones.
    """

    @jax.jit
    def mean_products(keys, rho):
        def products(key):
            batch = bench.family.draw(key, bench.setting(rho=rho), ICC_BATCH)
            _, grads = bench.family.gradients(params, None, batch)
            average = contract(jnp.full(ICC_BATCH, 1 / ICC_BATCH), grads)
            q = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(average))
            return jnp.stack([sq_norms(grads).mean(), q])

        a, q = jax.lax.map(products, keys).mean(0)
        return a, (ICC_BATCH * q - a) / (ICC_BATCH - 1)

    mean_square, signal = mean_products(jax.random.split(jax.random.key(1), ICC_BATCHES), 0.0)
    _, inner = mean_products(jax.random.split(jax.random.key(2), ICC_BATCHES), float(rho))
    return float((inner - signal) / (mean_square - signal))
