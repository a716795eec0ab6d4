"""What users are told when they pass something wrong, row by row.

The rows are those of the table of bad inputs in the design of the library: each says what
is passed, through a public entry point, and which words the message must have. The oracle
is the table. A row that must be allowed is a test function of its own. Rows 26 and 27 are
about device meshes, which the library does not take: their place is held by chunks of
tasks that do not divide the meta-batch, or are larger; row 28 by an unknown task axis.
"""

import dataclasses
import json
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.errors import ScopeParamNotFoundError

import maml_jax as mj
from maml_jax import cli, recipes
from maml_jax.aggregation import Aggregation, Level, aggregate

HERE = pathlib.Path(__file__).parent
SGD = optax.sgd(0.1)
T, N, D, C = 4, 5, 8, 5  # Tasks, examples, features, classes.


def apply_linear(params, inputs, mask):
    return inputs @ params["w"]


CLASSIFY = mj.losses.classification(apply_linear)
REGRESS = mj.losses.regression(apply_linear)
INNER = mj.maml(SGD, 1)
OUTER = mj.make_outer_step(CLASSIFY, INNER, optax.adam(1e-3))


def params(width=C, name="w"):
    return {name: np.random.default_rng(1).normal(size=(D, width)).astype(np.float32)}


def examples(*, tasks=T, count=N, features=D, **fields):
    inputs = np.random.default_rng(0).normal(size=(tasks, count, features)).astype(np.float32)
    targets = np.tile(np.arange(count, dtype=np.int32) % C, (tasks, 1))
    return mj.Examples(**{"inputs": inputs, "targets": targets, **fields})


def task(*, support=None, query=None):
    support = examples() if support is None else support
    return mj.Task(support=support, query=examples() if query is None else query)


def update(*, support=None, query=None, outer=OUTER, state=None, **arguments):
    """One outer step on a good meta-batch, but for what is given."""
    state = outer.init(params()) if state is None else state
    return outer.update(state, task(support=support, query=query), **arguments)


def relabelled(index, label):
    targets = examples().targets.copy()
    targets[index] = label
    return examples(targets=targets)


def with_nan(index):
    inputs = examples().inputs.copy()
    inputs[index] = np.nan
    return examples(inputs=inputs)


def draw(first_query_label, key):
    # Not `jax.random.uniform`, which takes seconds to compile.
    start = jax.random.key_data(key)[0].astype(np.float32) * 2.0**-20
    support, query = jnp.sin(start + jnp.arange(2 * N * D, dtype=np.float32)).reshape(2, N, D)
    labels = jnp.arange(N, dtype=np.int32)
    return mj.Task(
        support=mj.Examples(inputs=support, targets=labels),
        query=mj.Examples(inputs=query, targets=labels + first_query_label),
    )


# One function, so that both are compiled once.
SAMPLER = jax.tree_util.Partial(draw, np.int32(0))
MISLABELLED = jax.tree_util.Partial(draw, np.int32(3))


def run(sampler=SAMPLER, key=0, *, state=None, **numbers):
    state = OUTER.init(params()) if state is None else state
    numbers = {"num_steps": 1, "meta_batch_size": T, **numbers}
    return mj.run_outer_steps(OUTER, sampler, state, key, **numbers)


def evaluate(sampler=SAMPLER, key=0, **settings):
    return mj.evaluate(CLASSIFY, INNER, params(), sampler, key, **{"num_tasks": 2, **settings})


def in_32_bits(call):
    with jax.enable_x64(False):
        return call()


def asks_for_float64(params, inputs, mask):
    return inputs.astype(jnp.float64) @ params["w"]


def outer_of(*, loss=CLASSIFY, inner=INNER, **choices):
    return mj.make_outer_step(loss, inner, SGD, **choices)


def per_example(params, examples):
    return CLASSIFY(params, examples)[0], {"right": examples.targets == 0}


def diverging():
    outer = outer_of(loss=REGRESS, inner=mj.maml(optax.sgd(1e6), 30))
    targets = np.zeros((T, N, 1), np.float32)
    both = examples(targets=targets)
    return update(outer=outer, state=outer.init(params(1)), support=both, query=both)


def of_another_optimizer():
    return update(state=outer_of().init(params()))


def of_other_parameters():
    state = OUTER.init(params())
    return update(state=dataclasses.replace(state, params={"w": jnp.ones((D, C + 1))}))


def zeros(model, *shape):
    """Parameters of a model for inputs of this shape."""
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), made)


def of_another_network():
    deep, shallow = (mj.models.Mlp(features=widths) for widths in ((4, 4, C), (4, C)))
    outer = outer_of(loss=mj.losses.classification(deep.apply))
    return update(outer=outer, state=outer.init(zeros(shallow, 1, D)))


def one_task_of_a_regression():
    model = mj.models.Mlp(features=(4, 1))
    outer = outer_of(loss=mj.losses.regression(model.apply))
    columns = mj.Examples(inputs=jnp.ones((N, 1)), targets=jnp.ones((N, 1)))
    return update(outer=outer, state=outer.init(zeros(model, N, 1)), support=columns, query=columns)


def of_another_width():
    model = mj.models.Mlp(features=(4, C))
    outer = outer_of(loss=mj.losses.classification(model.apply))
    wide = examples(features=9)
    return update(outer=outer, state=outer.init(zeros(model, 1, D)), support=wide, query=wide)


def in_colour(model):
    return model.apply(zeros(model, 1, 16, 16, 1), jnp.zeros((1, 16, 16, 3)))


def rule(coefficients=None, combine=None):
    level = Level.STATIC if combine is None else Level.FULL
    return Aggregation(name="mine", level=level, coefficients=coefficients, combine=combine)


def reduce(*rules):
    return aggregate(rule(*rules), {"w": jnp.ones((3, 2))})


def image_classes(count, *, images=20, group="g"):
    return mj.data.ImageClasses(
        images=np.zeros((count, images, 2, 2, 1), np.uint8),
        counts=np.full(count, images),
        class_names=tuple(f"class{i}" for i in range(count)),
        groups=(group,) * count,
    )


def splits(*groups):
    names = ("meta_train", "meta_validation", "meta_test")
    return mj.data.Splits(
        **{n: image_classes(2, group=g) for n, g in zip(names, groups, strict=True)}
    )


def one_hot(dtype):
    return examples(targets=np.eye(C, dtype=dtype)[examples().targets])


SINGLE = jax.tree.map(lambda leaf: leaf[0], examples())
SWAPPED = examples(inputs=examples().targets, targets=examples().inputs)
FULL = examples(mask=np.ones((T, N), bool))
EMPTY = examples(mask=FULL.mask & (np.arange(T) != 1)[:, None])  # Task 1 has no example.
BYTES = np.zeros((T, N, 2, 2, 1), np.uint8)
KEY = "key must be jax.random.key"

# Row, what it is about, the call, the error, key words of the message.
REFUSED = [
    (1, "query", lambda: update(query=relabelled((2, 1), 7)), mj.NonFiniteTaskError,
     r"task \[2\].*its query set.*label of example 1 is 7.* 5 outputs .*0\.\.4.*relabel"),
    (1, "support", lambda: update(support=relabelled((2, 1), 5)), mj.NonFiniteTaskError,
     r"task \[2\].*its support set.*label of example 1 is 5.* 5 outputs"),
    (1, "compiled", lambda: run(MISLABELLED), mj.NonFiniteTaskError,
     r"step 0.*task \[0, 1, 2, 3\].*its query set.*label of example 2 is 5.* 5 outputs"),
    (1, "evaluate", lambda: evaluate(MISLABELLED), UserWarning,
     r"loss of 2 of 2 tasks is not finite.*fold_in\(key, 0\).*check its data and labels"),
    (2, "support", lambda: update(support=relabelled((0, 3), -1)), mj.NonFiniteTaskError,
     r"task \[0\].*its support set.*label of example 3 is -1.* 5 outputs"),
    (3, "float", lambda: update(support=examples(targets=np.zeros((T, N), np.float32))),
     TypeError, r"integer class indices, got float32; cast.*astype.*argmax"),
    (4, "one-hot-float", lambda: update(support=one_hot(np.float32)), ValueError,
     r"class indices \[N\], got shape \(5, 5\).*one-hot.*argmax"),
    (4, "one-hot-int", lambda: update(query=one_hot(np.int32)), ValueError, "one-hot.*argmax"),
    (5, "outer-step", lambda: update(support=examples(inputs=BYTES)), UserWarning,
     r"support.inputs are 8-bit images.*0\.\.255; divide by 255"),
    (5, "models", lambda: mj.models.Conv4(C).init(jax.random.key(0), BYTES[0]), ValueError,
     r"must be floats.*uint8 in 0\.\.255; divide by 255"),
    (6, "float64", lambda: in_32_bits(
        lambda: update(query=examples(inputs=np.zeros((T, N, D))))), UserWarning,
     r"query.inputs is float64.* 32 bits and rounds.*cast.*JAX_ENABLE_X64"),
    (7, "mlp", of_another_width, ValueError,
     "inputs have 9 features, but the parameters were made for 8"),
    (7, "conv4", lambda: in_colour(mj.models.Conv4(C)), ValueError,
     "inputs have 3 channels, but the parameters were made for 1"),
    (7, "resnet12", lambda: in_colour(mj.models.ResNet12(C, features=(2, 2))), ValueError,
     "inputs have 3 channels, but the parameters were made for 1"),
    (8, "task-counts", lambda: update(query=examples(tasks=3)), ValueError,
     "same number of tasks, got 4 support tasks and 3 query tasks"),
    (8, "example-counts", lambda: update(support=examples(targets=np.zeros((T, 3), int))),
     ValueError, r"support.targets must have the same leading axes \[T, N\].*\(4, 3\).*\(4, 5\)"),
    (9, "outer-step", lambda: update(support=examples(tasks=0), query=examples(tasks=0)),
     ValueError, "at least 1 task, got 0"),
    (9, "meta_batch", lambda: mj.meta_batch(SAMPLER, 0, 0), ValueError,
     "num_tasks must be at least 1, got 0"),
    (9, "run", lambda: run(meta_batch_size=0), ValueError, "meta_batch_size.*at least 1, got 0"),
    (9, "aggregate", lambda: aggregate("mean", jnp.ones((0, 3))), ValueError,
     "at least 1 task, got 0"),
    (10, "support", lambda: update(support=examples(count=0)), ValueError,
     "support must hold at least 1 example per task, got 0.*num_steps=0"),
    (10, "query", lambda: update(query=examples(count=0)), ValueError,
     "query must hold at least 1 example per task, got 0"),
    (10, "support-mask", lambda: update(support=EMPTY, query=FULL), mj.NonFiniteTaskError,
     r"task \[1\].*support mask leaves no example; mask the whole task"),
    (10, "query-mask", lambda: update(support=FULL, query=EMPTY), mj.NonFiniteTaskError,
     r"task \[1\].*query mask leaves no example"),
    (11, "query", lambda: update(query=with_nan((3, 0, 0))), mj.NonFiniteTaskError,
     r"task \[3\].*query\.inputs hold 1 value.*nan or inf.*parameters are unchanged.*skip"),
    (12, "dict", lambda: OUTER.update(OUTER.init(params()), {"x_support": 1, "y_support": 2}),
     TypeError, r"be a maml_jax.Task, got dict with keys \['x_support', 'y_support'\].*Task\("),
    (12, "no-query", lambda: mj.Task(support=examples()), TypeError, "missing.*'query'"),
    (12, "bare-array", lambda: update(query=np.zeros((T, N))), TypeError,
     "query must be maml_jax.Examples, got ndarray"),
    (12, "sampler", lambda: run(lambda key: jnp.zeros(3)), TypeError, "must be a maml_jax.Task"),
    (12, "evaluate", lambda: evaluate(lambda key: jnp.zeros(3)), TypeError,
     "must be a maml_jax.Task"),
    (13, "one-task", lambda: update(support=SINGLE, query=SINGLE), ValueError,
     r"leading axes \[T, N\].*got shape \(5,\).*add the task axis.*leaf\[None\]"),
    (13, "regression", one_task_of_a_regression, ValueError,
     r"expected inputs \[N, D\], got shape \(1,\).*add the task axis"),
    (14, "swapped", lambda: update(support=SWAPPED), TypeError,
     "support.inputs are integers of rank 2 and support.targets floats of rank 3.*swapped"),
    (15, "maml", lambda: mj.maml(SGD, -1), ValueError, "num_steps must be at least 0, got -1"),
    (15, "lslr", lambda: mj.lslr(0, learning_rate=0.1), ValueError, "num_steps.*at least 1, got 0"),
    (15, "evaluate", lambda: evaluate(num_steps=-1), ValueError, "num_steps.*at least 0, got -1"),
    (15, "run", lambda: run(num_steps=0), ValueError, "num_steps must be at least 1, got 0"),
    (16, "fraction", lambda: mj.maml(SGD, 2.5), TypeError, "num_steps.*an integer, got 2.5"),
    (16, "bool", lambda: mj.maml(SGD, True), TypeError, "num_steps.*an integer, got True"),
    (16, "run", lambda: run(num_steps=2.5), TypeError, "num_steps.*an integer, got 2.5"),
    (16, "meta_batch", lambda: mj.meta_batch(SAMPLER, 0, 2.5), TypeError,
     "num_tasks must be an integer, got 2.5"),
    (16, "data", lambda: mj.data.sinusoid(shot=2.5), ValueError, "shot.*integer.*got 2.5"),
    (18, "optax", lambda: mj.maml(optax.sgd("0.1"), 1), TypeError,
     "learning rates and other settings must be numbers or schedules"),
    (18, "no-optimizer", lambda: mj.maml(0.1, 1), TypeError,
     r"must be an optax transformation such as optax.sgd\(0.1\), got float"),
    (18, "rate", lambda: mj.meta_sgd(1, learning_rate="0.1"), TypeError,
     "learning_rate must be a number above 0, got str '0.1'"),
    (19, "nan", lambda: mj.maml(optax.sgd(np.nan), 1), ValueError,
     "finite updates, got nan or inf.*learning rate is finite"),
    (19, "inf", lambda: mj.maml(optax.sgd(np.inf), 1), ValueError, "got nan or inf"),
    (19, "negative", lambda: mj.maml(optax.sgd(-0.1), 1), ValueError,
     "must go downhill.*learning rate is above 0"),
    (19, "rate", lambda: mj.meta_sgd(1, learning_rate=-1), ValueError,
     "learning_rate must be above 0 and finite, got -1"),
    (19, "config", lambda: recipes.Config(outer_learning_rate=np.nan), ValueError,
     "outer_learning_rate must be above 0 and finite, got nan"),
    (20, "huge", diverging, mj.NonFiniteTaskError,
     "support loss starts at .*inner loop diverged; lower the inner learning rate"),
    (21, "outer-step", lambda: outer_of(aggregation="mena"), ValueError,
     "unknown aggregation 'mena'.*'mean', 'sum', 'weighted'.*did you mean 'mean'"),
    (21, "aggregate", lambda: aggregate("wieghted", jnp.ones((2, 3))), ValueError,
     "did you mean 'weighted'"),
    (21, "config", lambda: recipes.Config(aggregation="mena"), ValueError,
     "aggregation must be one of.*got 'mena'; did you mean 'mean'"),
    (21, "nonfinite", lambda: outer_of(on_nonfinite="skipp"), ValueError,
     "on_nonfinite must be one of.*did you mean 'skip'"),
    (22, "callable", lambda: outer_of(aggregation=lambda grads: grads), TypeError,
     r"'mean', 'sum', 'weighted' or a maml_jax.aggregation value such as .*got <function"),
    (22, "signature", lambda: reduce(lambda evidence: jnp.ones(3)), TypeError,
     "takes 1 positional argument but 2 were given"),
    (22, "no-state", lambda: reduce(lambda evidence, state: jnp.ones(3)), TypeError,
     r"'mine' must return a pair \(coefficients, state\), got ArrayImpl"),
    (22, "shape", lambda: reduce(lambda evidence, state: (jnp.ones(2), state)), TypeError,
     r"'mine' must return coefficients of shape \[T\] = \(3,\), got \(2,\)"),
    (22, "tree", lambda: reduce(None, lambda grads, evidence, state: ({"v": 1.0}, state)),
     TypeError, r"without the task axis, of shapes \{'w': \(2,\)\}, got \{'v': \(\)\}"),
    (22, "outer-step", lambda: update(
        outer=outer_of(aggregation=rule(lambda evidence, state: (jnp.ones(2), state)))),
     TypeError, r"'mine' must return coefficients of shape \[T\] = \(4,\), got \(2,\)"),
    (22, "weights", lambda: update(outer=outer_of(aggregation="weighted"), weights=[1.0] * T),
     TypeError, r"weights must be an array \[T\], got \[1.0, .*jnp.asarray"),
    (23, "optimizer", of_another_optimizer, ValueError,
     r"opt_state must be of this outer step.*\[0\].count must have shape \(\), got no entry"),
    (23, "shapes", of_other_parameters, ValueError,
     r"opt_state\[0\].mu\['w'\] must have shape \(8, 6\), got shape \(8, 5\)"),
    (23, "no-state", lambda: update(state=params()), TypeError,
     "state must be an OuterState, made by outer.init, got dict"),
    (23, "run", lambda: run(state=params()), TypeError,
     "state must be an OuterState, made by outer.init, got dict"),
    (23, "no-outer", lambda: mj.run_outer_steps(
        OUTER.update, SAMPLER, None, 0, num_steps=1, meta_batch_size=T), TypeError,
     "outer must be an OuterStep, made by make_outer_step, got function"),
    (24, "network", of_another_network, ScopeParamNotFoundError, "hidden_1"),
    (24, "integers", lambda: OUTER.init({"w": np.zeros((D, C), int)}), TypeError,
     r"params\['w'\] must hold floating-point numbers, got dtype int64"),
    (24, "empty", lambda: OUTER.init({}), ValueError, "at least one array, got an empty tree"),
    (25, "object", lambda: update(support=examples(inputs=np.full((T, N, D), None))), TypeError,
     "support.inputs must be numeric, got dtype object; stack"),
    (25, "strings", lambda: update(query=examples(targets=np.full((T, N), "cat"))), TypeError,
     "query.targets must be numeric, got dtype <U3"),
    (25, "lists", lambda: update(support=examples(inputs=examples().inputs.tolist())), TypeError,
     r"support.inputs\[0\].* must be an array of NumPy or JAX, got float; convert.*np.asarray"),
    (26, "metrics", lambda: update(outer=outer_of(loss=per_example)), TypeError,
     r"return a scalar or \(scalar, \{name: scalar\}\), got .*\(5,\).*average"),
    (28, "task-axis", lambda: outer_of(task_axis="pmap"), ValueError,
     "task_axis must be 'auto', 'vmap', 'scan' or a chunk size of at least 1, got 'pmap'"),
    (29, "way", lambda: mj.data.episodes(image_classes(16), way=20, shot=1, query_shot=1),
     ValueError, "20-way asked, but the split has 16 classes"),
    (30, "shots", lambda: mj.data.episodes(image_classes(5), way=5, shot=5, query_shot=16),
     ValueError, r"5 \+ 16 asked, but class g/class0 has 20"),
    (31, "overlap", lambda: splits("a", "b", "a"), ValueError,
     r"two splits.*a/class0 \(meta_train and meta_test\), a/class1.*remove or rename"),
    (32, "missing", lambda: mj.data.omniglot(data_dir="no_such_folder"), FileNotFoundError,
     "omniglot must be prepared.*no_such_folder.*maml-jax prepare omniglot --data-dir no_such"),
    (32, "another-folder", lambda: mj.data.cifar_fs(data_dir=HERE), FileNotFoundError,
     "cifar100 must be prepared.*maml-jax prepare cifar100"),
    (32, "images", lambda: mj.data.image_folder("no_such_folder"), FileNotFoundError,
     "root must be a folder of images, and no_such_folder is none"),
    (32, "another-images", lambda: mj.data.image_folder(HERE), FileNotFoundError,
     r"must have images at class/\* or group/class/\*"),
    (33, "float", lambda: run(key=0.5), TypeError, KEY + r"\(seed\).* integer seed, got float 0.5"),
    (33, "bool", lambda: evaluate(key=True), TypeError, KEY + ".*got True"),
    (33, "text", lambda: mj.meta_batch(SAMPLER, "0", 2), TypeError, KEY + ".*got str '0'"),
    (33, "many-keys", lambda: run(key=jax.random.split(jax.random.key(0))), TypeError,
     KEY + ".*got PRNGKeyArray"),
    (33, "no-sampler", lambda: run("glyphs"), TypeError, "sampler must be a function.*got str"),
    (36, "batch-stats", lambda: OUTER.init({"params": params(), "batch_stats": params()}),
     ValueError, r"mutable collections \['batch_stats'\].*BatchStatisticsNorm"),
    (37, "config", lambda: recipes.Config(dataset="omnglot"), ValueError,
     "dataset must be one of.*got 'omnglot'; did you mean 'omniglot'"),
    (38, "float64", lambda: in_32_bits(
        lambda: update(outer=outer_of(loss=mj.losses.classification(asks_for_float64)))),
     UserWarning, "dtype float64.*not available.*truncated to dtype float32"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [pytest.param(*row[2:], id=f"row{row[0]:02}-{row[1]}") for row in REFUSED],
)
def test_refused(call, error, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=f"(?s){words}") as caught:
            call()
    assert type(caught.value) is error


# Row, what it is about, the words after `maml-jax`, the exit code, key words on the terminal.
# RUN is a folder whose config.json has the changes of the fourth column.
COMMANDS = [
    (15, "flag", ["train", "--inner-steps", "-1"], {}, 2, "inner_steps must be at least 0, got -1"),
    (16, "flag", ["train", "--inner-steps", "2.5"], {}, 2, "--inner-steps.*2.5"),
    (16, "file", ["evaluate", "RUN"], {"inner_steps": 2.5}, 1,
     "config.json.*inner_steps must be an integer, got 2.5"),
    (19, "flag", ["train", "--inner-learning-rate", "nan"], {}, 2,
     "inner_learning_rate must be above 0"),
    (32, "data", ["train", "omniglot-5way-1shot-finn2017", "--data-dir", "no_such_folder"], {}, 1,
     "maml-jax prepare omniglot --data-dir no_such_folder"),
    (32, "run", ["resume", "no_such_folder"], {}, 1, "no_such_folder holds no run"),
    (37, "flag", ["train", "--inner-step", "3"], {}, 2, "--inner-step.*--inner-steps INT"),
    (37, "protocol", ["evaluate", "RUN", "--num-task", "3"], {}, 2, "--num-task.*--num-tasks"),
    (37, "field", ["evaluate", "RUN"], {"inner_step": 3}, 1,
     r"config.json.*does not know: \['inner_step'\].*did you mean 'inner_steps'"),
    (37, "value", ["evaluate", "RUN"], {"inner": "mmal"}, 1, "did you mean 'maml'"),
    (37, "no-config", ["evaluate", "RUN"], None, 1, "config.json.*must hold an entry 'config'"),
]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    """A folder for a run, with nothing of the command line left in the home or in JAX."""
    monkeypatch.setenv("MAML_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield tmp_path / "run"
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.parametrize(
    ("words", "changes", "code", "shown"),
    [pytest.param(*row[2:], id=f"row{row[0]:02}-{row[1]}") for row in COMMANDS],
)
def test_refused_by_the_command_line(run_dir, capsys, words, changes, code, shown):
    config = dataclasses.asdict(recipes.PRESETS["sinusoid-10shot-finn2017"])
    content = {} if changes is None else {"config": {**config, **changes}}
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        cli.main([str(run_dir) if word == "RUN" else word for word in words])
    assert stop.value.code == code
    terminal = "".join(capsys.readouterr()).replace("│", " ")
    assert re.search(shown, " ".join(terminal.split()))


def test_row01_a_wrong_label_is_never_a_number():
    """Value and gradient are NaN, unless the label is padding."""
    logits, labels = jnp.zeros((3, 2)), jnp.array([0, 1, 2])
    padding = jnp.array([True, True, False])
    value_and_slope = jax.jit(jax.value_and_grad(mj.losses.cross_entropy))
    for mask, expected in ((None, np.nan), (padding, np.log(2))):
        loss, slope = value_and_slope(logits, labels, mask=mask)
        np.testing.assert_allclose(loss, expected, rtol=1e-6)
        assert np.isnan(slope).any() == np.isnan(expected)
    assert np.isnan(mj.losses.accuracy(logits, labels))
    assert mj.losses.accuracy(logits, labels, mask=padding) == 0.5


@pytest.mark.parametrize(
    "task_axis",
    [
        pytest.param("auto", id="row17-no-inner-step"),
        pytest.param(3, id="row26-chunks-that-do-not-divide"),
        pytest.param(9, id="row27-a-chunk-larger-than-the-meta-batch"),
    ],
)
def test_row17_row26_row27_are_allowed(task_axis):
    """Oracle: without an inner step, plain `jax.grad` of the mean query loss."""
    outer = outer_of(inner=mj.maml(SGD, 0), task_axis=task_axis)
    grads, metrics = outer.gradient(outer.init(params()), task())

    @jax.jit
    @jax.grad
    def expected(params):
        return jax.vmap(lambda one: CLASSIFY(params, one)[0])(task().query).mean()

    np.testing.assert_allclose(grads["w"], expected(params())["w"], atol=1e-6)
    assert "support_loss" not in metrics


def test_row33_seeds_and_both_kinds_of_keys_mean_the_same():
    typed, old = jax.random.key(7), jax.random.key_data(jax.random.key(7))
    want = mj.meta_batch(SAMPLER, typed, 2)
    for key in (7, np.int64(7), old, np.asarray(old)):
        jax.tree.map(np.testing.assert_array_equal, mj.meta_batch(SAMPLER, key, 2), want)
    assert len({float(run(key=key)[1]["query_loss"][0]) for key in (7, typed, old)}) == 1
    assert evaluate(key=7) == evaluate(key=typed) == evaluate(key=old)


def test_row34_the_same_key_draws_other_tasks_at_another_step():
    """The two states have the same parameters: their losses differ by the tasks alone."""
    state = OUTER.init(params())
    later = dataclasses.replace(state, step=state.step + 1)
    losses = [float(run(state=start)[1]["query_loss"][0]) for start in (state, later, state)]
    assert losses[0] == losses[2]
    assert abs(losses[0] - losses[1]) > 1e-4
    assert int(run(state=state)[0].step) == int(later.step)


def test_row35_nothing_of_the_caller_is_donated():
    given = jax.tree.map(jnp.asarray, params())
    state = OUTER.init(given)
    before = jax.tree.map(np.array, (given, state))
    moved = (update(state=state)[0], run(state=state)[0])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((given, state)))
    jax.tree.map(np.testing.assert_array_equal, (given, state), before)
    for after in moved:
        assert np.abs(after.params["w"] - state.params["w"]).max() > 1e-4


def test_every_row_of_the_table_is_here():
    in_tables = {row[0] for row in REFUSED + COMMANDS}
    in_names = {int(number) for name in globals() for number in re.findall(r"row(\d+)", name)}
    assert in_tables | in_names == set(range(1, 39))
