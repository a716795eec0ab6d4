"""The contract that every aggregation keeps; a new rule is one new row.

A rule is compiled once for all tests on meta-batches of the same size: nearly all of the time is
spent compiling. What is compiled is compared with what is not in `test_runs_under_jit`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import problems
from maml_jax import aggregation as agg
from maml_jax.aggregation import ladder

NUM_TASKS = 6

MEAN_SCALED = {
    "mean": agg.mean(),
    "by_size": agg.by_size("query"),
    "by_size support squared": agg.by_size("support", exponent=2.0),
    "weighted": agg.weighted(),
    "weighted count": agg.weighted("count"),
    "weighted ema": agg.weighted("ema"),
    "tilted": agg.tilted(0.7),
    "tilted down": agg.tilted(-2.0),
    "norm_clipped": agg.norm_clipped(),
    "geometric_median": agg.geometric_median(),
    "trimmed_mean": agg.trimmed_mean(1),
    "median": agg.median(),
    "graddrop": agg.graddrop(),
    "cvar": agg.cvar(0.4),
    "worst_case": agg.worst_case(0.1, 2 * NUM_TASKS),
    "by_complexity": agg.by_complexity(),
    "by_complexity own": agg.by_complexity(len, exponent=-2.0),
    "importance": agg.importance(),
    "importance weights": agg.importance(normalize="weights"),
    "importance own": agg.importance(len, normalize="weights"),
    "inverse_variance": agg.inverse_variance(),
    "inverse_variance between": agg.inverse_variance(between=0.5),
    "inverse_variance own": agg.inverse_variance(len, between=0.5),
    "random_weights": agg.random_weights(),
    "krum": agg.krum(1, 2),
    "mgda": agg.mgda(),
    "upgrad": agg.upgrad(),
    "dual_projection": agg.dual_projection(),
    "pcgrad": agg.pcgrad(),
    "gradvac": agg.gradvac(2 * NUM_TASKS),
    "cagrad": agg.cagrad(),
    "imtl_g": agg.imtl_g(),
    "nash_mtl": agg.nash_mtl(),
    "aligned_mtl": agg.aligned_mtl(),
    "aligned_mtl median": agg.aligned_mtl("median"),
    "aligned_mtl rmse": agg.aligned_mtl("rmse"),
    "config": agg.config(),
}
OTHERS = {
    "importance count": agg.importance(normalize="count", clip=1.5),
    "normalized": agg.normalized(),
    "sum": agg.sum(),
    "power": agg.power(0.5),
    "weighted none": agg.weighted("none"),
    "norm_clipped absolute": agg.norm_clipped(2.0),
}
RULES = MEAN_SCALED | OTHERS
LINEAR = [name for name, rule in RULES.items() if rule.level == agg.Level.STATIC]
# Unbiased for weights of mean 1 only, so not on the scale of the mean for others.
SELF_NORMALISED = [name for name in MEAN_SCALED if name != "weighted count"]
# A threshold, a noise or a variance in the gradient's units are not of degree 1, a direction is
# of degree 0.
DEGREE_ONE = [
    name
    for name in RULES
    if name not in ("norm_clipped absolute", "normalized") and "variance" not in name
]
# Of draws, the distribution only is the same when tasks are reordered or left out.
DRAWN = [name for name, rule in RULES.items() if rule.seed is not None]
# Estimates of a variance, and what is dropped by number, depend on how many tasks there are.
CHANGED_BY_COPIES = ("trimmed_mean", "inverse_variance", "krum")
SETTLED = [name for name in RULES if name not in DRAWN]


def rows(seed=0, num_tasks=NUM_TASKS):
    return np.random.default_rng(seed).normal(size=(num_tasks, problems.DIM))


def facts(seed=0, num_tasks=NUM_TASKS):
    """What tasks come with: losses, weights, sizes."""
    rng = np.random.default_rng(100 + seed)
    return {
        "losses": jnp.asarray(rng.uniform(0.5, 2.0, num_tasks)),
        "weights": jnp.asarray(rng.uniform(0.5, 2.0, num_tasks)),
        "num_query": jnp.asarray(rng.integers(3, 9, num_tasks)),
        "num_support": jnp.asarray(rng.integers(1, 5, num_tasks)),
        "support_losses": jnp.asarray(rng.uniform(0.5, 2.0, num_tasks)),
        "traits": jnp.asarray(rng.uniform(0.5, 2.0, num_tasks)),
        "noise": jnp.asarray(rng.uniform(0.0, 2.0, num_tasks)),
        "task_ids": jnp.asarray(rng.permutation(num_tasks)),
        "key": jax.random.key(seed),
    }


@functools.partial(jax.jit, static_argnums=0)
def compiled(rule, grads, mask, options):
    return agg.aggregate(rule, grads, mask=mask, **options)


def reduce(rule, matrix, known, *, mask=None):
    """Aggregates rows `[T, DIM]` and flattens the result; without a mask, all tasks count."""
    mask = np.ones(len(matrix), bool) if mask is None else mask
    grads = problems.unflat_rows(np.asarray(matrix))
    return problems.flat(compiled(rule, grads, mask, given(rule, known)))


def given(rule, known):
    """What a rule may be given: weights only where it uses them."""
    return {k: v for k, v in known.items() if k != "weights" or rule.uses_weights}


def pick(known, index):
    per_task = {k: v[np.asarray(index)] for k, v in known.items() if k != "key"}
    return per_task | {"key": known["key"]}


def close(actual, expected, tolerance):
    scale = max(np.abs(expected).max(), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(params=RULES, ids=list(RULES))
def rule(request):
    return RULES[request.param]


@pytest.fixture
def loose(tolerance):
    """Iterative rules and reassociated sums differ in the last digits."""
    return 1000 * tolerance


@pytest.mark.parametrize("name", SETTLED)
def test_permuting_tasks_changes_nothing(name, loose):
    rule = RULES[name]
    order = np.random.default_rng(1).permutation(NUM_TASKS)
    want = reduce(rule, rows(), facts())
    close(reduce(rule, rows()[order], pick(facts(), order)), want, loose)


@pytest.mark.parametrize("name", SELF_NORMALISED)
def test_identical_gradients_give_that_gradient(name, loose):
    one = rows()[0]
    got = reduce(RULES[name], np.tile(one, (NUM_TASKS, 1)), facts())
    close(got, one, loose)


@pytest.mark.parametrize("name", SELF_NORMALISED)
def test_one_task_gives_its_gradient(name, loose):
    rule = RULES[name]
    count = rule.min_tasks
    mask = np.arange(count) == 0
    got = reduce(rule, rows(num_tasks=count), facts(num_tasks=count), mask=mask)
    close(got, rows(num_tasks=count)[0], loose)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize("name", DEGREE_ONE)
def test_degree_one_over_twelve_decades(name, scale):
    """A(c g) = c A(g), in float32, which overflows first."""
    rule = RULES[name]
    matrix = rows().astype(np.float32)
    want = reduce(rule, matrix, facts())
    close(reduce(rule, np.float32(scale) * matrix, facts()) / scale, want, 1e-4)


@pytest.mark.parametrize(
    "name", [n for n in MEAN_SCALED if n in SETTLED and n not in CHANGED_BY_COPIES]
)
def test_duplicating_every_task_changes_nothing(name, loose):
    """Of each of the first three tasks two, against one and three masked ones."""
    twice = np.tile(np.arange(NUM_TASKS // 2), 2)
    once = np.arange(NUM_TASKS) < NUM_TASKS // 2
    want = reduce(RULES[name], rows(), facts(), mask=once)
    close(reduce(RULES[name], rows()[twice], pick(facts(), twice)), want, loose)


@pytest.mark.parametrize("name", SETTLED)
def test_masked_is_absent_whatever_the_gradient_holds(name, loose):
    """The masked task holds NaN in gradient and loss, and inf in its weight's task."""
    rule = RULES[name]
    keep = np.array([0, 1, 3, 4, 5])
    want = reduce(rule, rows()[keep], pick(facts(), keep))
    matrix, known = rows(), facts()
    matrix[2] = np.nan
    for fact in ("losses", "support_losses", "traits", "noise"):
        known[fact] = known[fact].at[2].set(jnp.nan)
    mask = np.arange(NUM_TASKS) != 2
    close(reduce(rule, matrix, known, mask=mask), want, loose)


@pytest.mark.parametrize("name", DRAWN)
def test_a_masked_task_of_a_drawing_rule_does_not_show(name):
    """With the draws of the same key, whatever it holds."""
    mask = np.arange(NUM_TASKS) != 2
    want = reduce(RULES[name], rows(), facts(), mask=mask)
    matrix, known = rows(), facts()
    matrix[2] = np.nan
    np.testing.assert_array_equal(reduce(RULES[name], matrix, known, mask=mask), want)


def test_the_scale_of_the_sum_is_that_of_the_mean_times_the_valid_tasks(rule, loose):
    mask = np.arange(NUM_TASKS) != 2
    want = (NUM_TASKS - 1) * reduce(rule, rows(), facts(), mask=mask)
    close(reduce(rule.on_sum_scale(), rows(), facts(), mask=mask), want, loose)


@pytest.mark.parametrize("name", [n for n in RULES if RULES[n].uses_weights])
def test_zero_weight_is_absent(name, loose):
    keep = np.array([0, 1, 3, 4, 5])
    want = reduce(RULES[name], rows()[keep], pick(facts(), keep))
    matrix, known = rows(), facts()
    matrix[2] = np.inf
    known["weights"] = known["weights"].at[2].set(0.0)
    close(reduce(RULES[name], matrix, known), want, loose)


def test_no_valid_task_gives_zero(rule):
    got = reduce(rule, rows(), facts(), mask=np.zeros(NUM_TASKS, bool))
    np.testing.assert_array_equal(got, np.zeros(problems.DIM))


def test_zero_gradients_give_zero(rule):
    got = reduce(rule, np.zeros((NUM_TASKS, problems.DIM)), facts())
    np.testing.assert_array_equal(got, np.zeros(problems.DIM))


def test_result_has_the_dtype_of_the_leaf(rule):
    """bfloat16 leaves: norms and sums in float32, the result in bfloat16 and near."""
    half = problems.unflat_rows(rows().astype(jnp.bfloat16))
    got = compiled(rule, half, np.ones(NUM_TASKS, bool), given(rule, facts()))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(got))
    want = reduce(rule, rows(), facts())
    close(problems.flat(got).astype(np.float64), want.astype(np.float64), 0.03)


def test_runs_under_jit(rule, loose):
    """Oracle: operation by operation, and without a mask."""
    want = agg.aggregate(rule, problems.unflat_rows(rows()), **given(rule, facts()))
    close(reduce(rule, rows(), facts()), problems.flat(want), loose)


def test_formulas_of_the_linear_rules(tolerance):
    """Oracle: the formulas in NumPy."""
    matrix, known = rows(), {k: np.asarray(v) for k, v in facts().items() if k != "key"}
    weights, query, support = known["weights"], known["num_query"], known["num_support"]
    traits = known["traits"]
    want = {
        "mean": matrix.mean(0),
        "sum": matrix.sum(0),
        "power": matrix.sum(0) / np.sqrt(NUM_TASKS),
        "weighted": weights @ matrix / weights.sum(),
        "weighted count": weights @ matrix / NUM_TASKS,
        "weighted ema": weights @ matrix / weights.sum(),  # The first step's average is exact.
        "weighted none": weights @ matrix,
        "by_size": query @ matrix / query.sum(),
        "by_size support squared": support**2 @ matrix / (support**2).sum(),
        "importance": weights @ matrix / weights.sum(),  # The first step's average is exact.
        "importance weights": weights @ matrix / weights.sum(),
        "importance count": np.minimum(weights, 1.5) @ matrix / NUM_TASKS,
        "importance own": np.exp(traits) @ matrix / np.exp(traits).sum(),
        "by_complexity own": traits**-2 @ matrix / (traits**-2).sum(),
        "inverse_variance own": (1 / (traits + 0.5)) @ matrix / (1 / (traits + 0.5)).sum(),
    }
    assert sorted([*want, "random_weights"]) == sorted(LINEAR)
    for name, expected in want.items():
        close(reduce(RULES[name], matrix, facts()), expected, 10 * tolerance)


def test_formulas_of_the_other_rules(tolerance):
    """Oracles in NumPy: softmax, clipped norms, sorting."""
    matrix, losses = rows(), np.asarray(facts()["losses"])
    worst = np.argsort(-losses)[:3]  # 0.4 of 6 tasks: two, and 0.4 of the third.
    cvar = np.array([1, 1, 0.4]) @ matrix[worst] / 2.4
    close(reduce(RULES["cvar"], matrix, facts()), cvar, 10 * tolerance)
    close(reduce(RULES["median"], matrix, facts()), np.median(matrix, axis=0), 10 * tolerance)
    support = np.asarray(facts()["support_losses"])
    hard = support @ matrix / support.sum()
    close(reduce(RULES["by_complexity"], matrix, facts()), hard, 10 * tolerance)
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    close(reduce(RULES["normalized"], matrix, facts()), units.mean(0), 10 * tolerance)
    tilts = np.exp(0.7 * losses)
    close(reduce(RULES["tilted"], matrix, facts()), tilts @ matrix / tilts.sum(), 10 * tolerance)
    norms = np.linalg.norm(matrix, axis=1)
    for name, limit in (("norm_clipped", np.median(norms)), ("norm_clipped absolute", 2.0)):
        clipped = np.minimum(1, limit / norms) @ matrix / NUM_TASKS
        close(reduce(RULES[name], matrix, facts()), clipped, 10 * tolerance)
    trimmed = np.sort(matrix, axis=0)[1:-1].mean(0)
    close(reduce(RULES["trimmed_mean"], matrix, facts()), trimmed, 10 * tolerance)


def test_special_cases_reduce_to_the_mean(loose):
    mean = rows().mean(0)
    for rule in (
        agg.power(1.0),
        agg.by_size(exponent=0.0),
        agg.tilted(0.0),
        agg.norm_clipped(1e9),
        agg.trimmed_mean(0),
        agg.cvar(1.0),
        agg.by_complexity(exponent=0.0),
        agg.krum(0, NUM_TASKS),
        agg.cagrad(0.0),
    ):
        close(reduce(rule, rows(), facts()), mean, loose)
    equal = facts() | {"weights": jnp.full(NUM_TASKS, 3.0)}
    close(reduce(agg.weighted(), rows(), equal), mean, loose)
    scaled = facts() | {"weights": 7.0 * facts()["weights"]}
    close(reduce(agg.weighted(), rows(), scaled), reduce(agg.weighted(), rows(), facts()), loose)


def test_geometric_median_has_no_downhill_direction():
    """Optimality: the sum of unit vectors towards the tasks vanishes."""
    matrix = rows()
    point = reduce(agg.geometric_median(400), matrix, facts())
    away = matrix - point
    towards = (away / np.linalg.norm(away, axis=1, keepdims=True)).sum(0)
    assert np.linalg.norm(towards) < (1e-6 if jax.config.jax_enable_x64 else 1e-2)


@pytest.mark.parametrize("name", ["norm_clipped", "geometric_median", "trimmed_mean", "median"])
def test_robust_rules_bound_one_wild_task(name):
    """A task 10⁶ times as large moves the result by no more than the others' spread."""
    matrix = rows()
    calm = reduce(RULES[name], matrix, facts())
    matrix[0] *= 1e6
    wild = reduce(RULES[name], matrix, facts())
    assert np.linalg.norm(wild - calm) < np.linalg.norm(rows(), axis=1).max()
    assert np.linalg.norm(reduce(RULES["mean"], matrix, facts())) > 1e4


def test_ema_normalisation_remembers(tolerance):
    """Debiased average of the weights of all steps so far; a fully masked step adds none."""
    rule, known = agg.weighted("ema"), facts()
    state, matrix = rule.init(), rows()
    grads = problems.unflat_rows(jnp.asarray(matrix))
    first, second = np.asarray(known["weights"]), np.asarray(known["weights"])[::-1] * 3
    for weights, mask in ((first, True), (second, False), (second, True)):
        got, state = agg.aggregate(
            rule,
            grads,
            weights=jnp.asarray(weights),
            state=state,
            mask=jnp.full(NUM_TASKS, mask),
        )
    average = (0.99 * 0.01 * first.mean() + 0.01 * second.mean()) / (0.99 * 0.01 + 0.01)
    close(problems.flat(got), second @ matrix / (NUM_TASKS * average), 100 * tolerance)


def test_coefficients_are_constants():
    """The contracted loss has the gradient of its parts, none of the coefficients'."""

    def total(losses):
        evidence = ladder.Evidence(valid=jnp.ones(3, bool), losses=losses)
        coefficients, _ = ladder.checked_coefficients(agg.tilted(1.0), evidence, ())
        return coefficients @ losses

    losses = jnp.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(jax.grad(total)(losses), jax.nn.softmax(losses), rtol=1e-5)


def test_contraction_is_over_the_task_axis_alone():
    """A square leaf must not come out transposed, which `stack.T @ w` does silently."""
    grads = problems.unflat_rows(jnp.asarray(rows()))
    got = agg.aggregate("weighted", grads, weights=facts()["weights"])
    weights = np.asarray(facts()["weights"] / facts()["weights"].sum())
    for name, leaf in got.items():
        want = sum(w * np.asarray(g) for w, g in zip(weights, grads[name], strict=True))
        assert leaf.shape == problems.SHAPES[name]
        np.testing.assert_allclose(leaf, want, rtol=1e-5)


def test_empty_and_missing_leaves_are_kept():
    grads = {"empty": jnp.zeros((3, 0)), "none": None, "w": jnp.ones((3, 2))}
    for rule in (agg.mean(), agg.geometric_median(), agg.trimmed_mean(1)):
        got = agg.aggregate(rule, grads)
        assert got["none"] is None
        assert got["empty"].shape == (0,)
        np.testing.assert_allclose(got["w"], np.ones(2), rtol=1e-6)


ERRORS = {
    "name": (lambda: agg.resolve("mena"), ValueError, "did you mean 'mean'"),
    "kind": (lambda: agg.resolve(jnp.mean), TypeError, "must be 'mean', 'sum', 'weighted' or"),
    "weights unused": (
        lambda: agg.aggregate("mean", jnp.ones((2, 1)), weights=jnp.ones(2)),
        ValueError,
        "'mean' does not use weights",
    ),
    "weights missing": (
        lambda: agg.aggregate("weighted", jnp.ones((2, 1))),
        ValueError,
        "needs weights=",
    ),
    "weights column": (
        lambda: agg.aggregate("weighted", jnp.ones((2, 1)), weights=jnp.ones((2, 1))),
        ValueError,
        r"weights must have shape \[T\] = \(2,\), got \(2, 1\)",
    ),
    "weights negative": (
        lambda: agg.aggregate("weighted", jnp.ones((2, 1)), weights=jnp.array([1.0, -1.0])),
        ValueError,
        "got -1.0 for task 1",
    ),
    "weights zero": (
        lambda: agg.aggregate("weighted", jnp.ones((2, 1)), weights=jnp.zeros(2)),
        ValueError,
        "must not all be 0",
    ),
    "mask shape": (
        lambda: agg.aggregate("mean", jnp.ones((2, 1)), mask=jnp.ones(3, bool)),
        ValueError,
        "mask must have shape",
    ),
    "losses missing": (
        lambda: agg.aggregate(agg.tilted(1.0), jnp.ones((2, 1))),
        ValueError,
        "pass losses=",
    ),
    "sizes missing": (
        lambda: agg.aggregate(agg.by_size(), jnp.ones((2, 1))),
        ValueError,
        "pass num_query=",
    ),
    "too few": (
        lambda: agg.aggregate(agg.trimmed_mean(1), jnp.ones((2, 1))),
        ValueError,
        "needs at least 3 tasks, got a meta-batch of 2",
    ),
    "empty": (
        lambda: agg.aggregate("mean", jnp.ones((0, 1))),
        ValueError,
        "at least 1 task, got 0",
    ),
    "ragged": (
        lambda: agg.aggregate("mean", {"a": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}),
        ValueError,
        "one and the same T",
    ),
    "normalize": (lambda: agg.weighted("sum"), ValueError, "normalize must be one of"),
    "which": (lambda: agg.by_size("train"), ValueError, "which must be"),
    "size exponent": (lambda: agg.by_size(exponent=np.inf), ValueError, "finite, got inf"),
    "exponent": (lambda: agg.power(np.nan), ValueError, "finite, got nan"),
    "tilt": (lambda: agg.tilted(np.inf), ValueError, "tilt must be finite, got inf"),
    "threshold": (lambda: agg.norm_clipped(0), ValueError, "a number above 0, got 0"),
    "iterations": (lambda: agg.geometric_median(0), ValueError, "at least 1, got 0"),
    "byzantine": (lambda: agg.krum(-1), ValueError, "num_byzantine must be at least 0, got -1"),
    "selected": (lambda: agg.krum(1, 0), ValueError, "num_selected must be at least 1, got 0"),
    "too few for krum": (
        lambda: agg.aggregate(agg.krum(1), jnp.ones((3, 1))),
        ValueError,
        "needs at least 4 tasks, got a meta-batch of 3",
    ),
    "c": (lambda: agg.cagrad(1.0), ValueError, r"c must be in \[0, 1\), got 1.0"),
    "by": (lambda: agg.aligned_mtl("mean"), ValueError, "by must be one of .*, got 'mean'"),
    "ids": (lambda: agg.gradvac(0), ValueError, "num_task_ids must be at least 1, got 0"),
    "decay": (lambda: agg.gradvac(1, decay=2.0), ValueError, r"decay must be in \[0, 1\], got 2"),
    "trim": (lambda: agg.trimmed_mean(-1), ValueError, "at least 0, got -1"),
    "both": (
        lambda: agg.Aggregation(name="x", level=agg.Level.FULL, coefficients=lambda e, s: e),
        ValueError,
        "level FULL must have `combine` only",
    ),
    "coefficients shape": (
        lambda: agg.aggregate(
            agg.Aggregation(
                name="x", level=agg.Level.STATIC, coefficients=lambda e, s: (jnp.ones(1), s)
            ),
            jnp.ones((2, 1)),
        ),
        TypeError,
        r"coefficients of shape \[T\] = \(2,\), got \(1,\)",
    ),
    "combined shape": (
        lambda: agg.aggregate(
            agg.Aggregation(name="x", level=agg.Level.FULL, combine=lambda g, e, s: (g, s)),
            {"w": jnp.ones((2, 1))},
        ),
        TypeError,
        "without the task axis, of shapes",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), ERRORS.values(), ids=ERRORS)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
