"""The protocol: values against an explicit loop, intervals, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import maml_jax as mj
import problems

SAMPLER = mj.data.sinusoid(shot=4, query_shot=6)
LOSS = mj.losses.regression(problems.apply_network)
INNER = mj.maml(optax.sgd(0.05), 1)


def evaluate(**options):
    settings = {"num_tasks": 7, "num_steps": 2, **options}
    return mj.evaluate(LOSS, INNER, problems.network(), SAMPLER, 3, **settings)


def test_means_and_intervals_equal_an_explicit_loop(tolerance):
    """Oracle: adapt for 0, 1, 2 steps to each task by hand; the interval is 1.96 s / √n."""
    result = evaluate()
    losses = []
    for index in range(7):
        task = SAMPLER(jax.random.fold_in(jax.random.key(3), index))
        steps = [
            LOSS(
                mj.maml(optax.sgd(0.05), k).adapt(LOSS, problems.network(), task.support)[0],
                task.query,
            )
            for k in range(3)
        ]
        losses.append([float(value) for value in steps])
    losses = np.array(losses)
    np.testing.assert_allclose(result.means["loss"], losses.mean(0), rtol=1000 * tolerance)
    half = 1.959964 * losses.std(0, ddof=1) / np.sqrt(7)
    np.testing.assert_allclose(result.half_widths["loss"], half, rtol=1e4 * tolerance)
    assert result.inner_steps == (0, 1, 2)
    assert (result.num_tasks, result.num_support, result.num_query) == (7, 4, 6)


def test_the_number_comes_with_its_protocol():
    text = str(evaluate())
    assert text.startswith("loss ")
    assert text.endswith(
        "after 2 inner steps (7 tasks, 4 support and 6 query examples, transductive, seed 3)"
    )


def test_task_axis_changes_nothing(tolerance):
    results = [evaluate(task_axis=axis).means["loss"] for axis in ("vmap", "scan", 3)]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1000 * tolerance)


def classes(num_classes=6):
    images = np.random.default_rng(0).integers(0, 256, (num_classes, 9, 8, 8, 1), np.uint8)
    return mj.data.ImageClasses(
        images=images,
        counts=np.full(num_classes, 9),
        class_names=tuple("abcdefgh"[:num_classes]),
        groups=("noise",) * num_classes,
    )


@pytest.mark.slow
def test_not_transductive_judges_each_query_alone():
    """The accuracy equals that of adapting, then giving one query at a time with the support."""
    model = mj.models.Conv4(num_classes=3, features=4)
    loss_fn = mj.losses.classification(model.apply)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    inner = mj.maml(optax.sgd(0.5), 1)
    sampler = mj.data.episodes(classes(), way=3, shot=1, query_shot=2)
    result = mj.evaluate(loss_fn, inner, params, sampler, 0, num_tasks=2, transductive=False)
    joint = mj.evaluate(loss_fn, inner, params, sampler, 0, num_tasks=2)

    @jax.jit
    def alone(task):
        adapted, _ = inner.adapt(loss_fn, params, task.support)

        def one(inputs, target):
            query = mj.Examples(inputs=inputs[None], targets=target[None], reference=task.support)
            return loss_fn(adapted, query)[0]

        return jax.vmap(one)(task.query.inputs, task.query.targets).mean()

    tasks = [sampler(jax.random.fold_in(jax.random.key(0), index)) for index in range(2)]
    want = np.mean([float(alone(task)) for task in tasks])
    np.testing.assert_allclose(result.means["loss"][-1], want, rtol=1e-4)
    assert abs(joint.means["loss"][-1] - want) > 1e-3
    assert not result.transductive
    assert "not transductive" in str(result)


def test_a_loss_that_ignores_the_reference_is_refused():
    """Its predictions depend on the other queries, so the label would be wrong."""
    model = mj.models.Conv4(num_classes=3, features=4)

    def loss_fn(params, examples):
        logits = model.apply(params, examples.inputs)
        return mj.losses.cross_entropy(logits, examples.targets)

    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    sampler = mj.data.episodes(classes(), way=3, shot=1, query_shot=2)
    with pytest.raises(ValueError, match="transductive=False needs a loss that averages over"):
        mj.evaluate(
            loss_fn,
            mj.maml(optax.sgd(0.5), 1),
            params,
            sampler,
            0,
            num_tasks=2,
            transductive=False,
        )


def test_an_inner_loop_of_ones_own_reports_the_end_only():
    own = mj.InnerLoop(init=lambda params: params, adapt=INNER.adapt)
    result = mj.evaluate(LOSS, own, problems.network(), SAMPLER, 3, num_tasks=7)
    assert len(result.means["loss"]) == 1
    np.testing.assert_allclose(result.mean, evaluate(num_steps=1).mean, rtol=1e-5)
    with pytest.raises(ValueError, match="num_steps can be changed only"):
        mj.evaluate(LOSS, own, problems.network(), SAMPLER, 3, num_tasks=7, num_steps=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num_tasks": 1}, "num_tasks must be at least 2"), ({"num_steps": -1}, "num_steps must be")],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**options)
