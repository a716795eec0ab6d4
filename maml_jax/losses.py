"""Losses and measures of one task's predictions, aware of padding.

In shapes, `N` is the number of examples, `C` the number of classes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from maml_jax.tasks import Examples, Params

LossFn = Callable[[Params, Examples], Any]
"""Parameters and examples of one task to a scalar, or `(scalar, {name: scalar})`."""

ApplyFn = Callable[[Params, Any, jax.Array | None], jax.Array]
"""`(params, inputs [N, ...], mask [N] or None)` to predictions `[N, ...]`. Examples with
mask False must not feed batch statistics; they are predicted all the same."""


def cross_entropy(logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None):
    """Averages the cross-entropy of class indices over the unmasked examples.

    ℓ = - (1/N) Σᵢ log softmax(logitsᵢ)[labelᵢ], in nats.

    A label outside `0..C-1` makes value and gradient NaN, never a wrong number; the outer
    step then names it. With no unmasked example the value is NaN and its gradient 0.

    Args:
      logits: unnormalised log-probabilities `[N, C]`.
      labels: integer class indices `[N]`, in `0..C-1`.
      mask: booleans `[N]`, False for padding.

    Returns:
      A scalar, at least 0.

    Raises:
      TypeError: if the labels are not integers.
      ValueError: if the shapes do not fit, as with one-hot labels.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import losses
      >>> print(round(float(losses.cross_entropy(jnp.zeros((4, 2)), jnp.array([0, 1, 1, 0]))), 4))
      0.6931
    """
    _check_labels(logits, labels)
    num_classes = logits.shape[-1]
    outside = _outside(logits, labels, mask)
    position = jnp.argmax(outside)
    checkify.debug_check(
        ~jnp.any(outside),
        f"the label of example {{position}} is {{label}}, but the model has {num_classes} outputs "
        f"(labels must be in 0..{num_classes - 1}); relabel the classes of each task.",
        position=position,
        label=jnp.asarray(labels)[position],
    )
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(
        log_probabilities, jnp.clip(labels, 0, num_classes - 1)[:, None], axis=-1
    )[:, 0]
    # A factor, for `where` has gradient 0 at its NaN: a wrong support label would go unnoticed.
    return _masked_mean(jnp.where(outside, jnp.nan, 1) * -picked, mask)


def squared_error(predictions: jax.Array, targets: jax.Array, *, mask: jax.Array | None = None):
    """Averages the squared error over the unmasked examples and all output dimensions.

    Args:
      predictions: `[N, ...]`.
      targets: `[N, ...]`, of the same shape.
      mask: booleans `[N]`, False for padding.

    Returns:
      A scalar, in squared units of the targets.

    Raises:
      ValueError: if the shapes differ, since broadcasting would average wrong pairs.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import losses
      >>> print(float(losses.squared_error(jnp.zeros((2, 1)), jnp.array([[1.0], [3.0]]))))
      5.0
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions and targets must have the same shape, got {predictions.shape} and "
            f"{targets.shape}; reshape one of them."
        )
    errors = jnp.square(predictions - targets)
    return _masked_mean(errors.reshape(len(errors), -1).mean(axis=1), mask)


def accuracy(logits: jax.Array, labels: jax.Array, *, mask: jax.Array | None = None):
    """Gives the fraction of unmasked examples whose largest logit is that of the label.

    A label outside `0..C-1` gives NaN.

    Args:
      logits: `[N, C]`.
      labels: integer class indices `[N]`.
      mask: booleans `[N]`, False for padding.

    Returns:
      A scalar in [0, 1].

    Raises:
      TypeError: if the labels are not integers.
      ValueError: if the shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import losses
      >>> print(float(losses.accuracy(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1]))))
      0.5
    """
    _check_labels(logits, labels)
    hits = (jnp.argmax(logits, axis=-1) == labels).astype(logits.dtype)
    return _masked_mean(jnp.where(_outside(logits, labels, mask), jnp.nan, hits), mask)


def predict(apply_fn: ApplyFn, params: Params, examples: Examples) -> jax.Array:
    """Predicts for examples, with batch statistics from where they ask.

    When `examples.reference` is given, the model sees reference and examples together,
    but only the reference feeds its batch statistics.

    Args:
      apply_fn: the model, `(params, inputs, mask) -> predictions`.
      params: its parameters.
      examples: `N` examples of one task.

    Returns:
      Predictions `[N, ...]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax import Examples, losses
      >>> def apply_fn(params, inputs, mask):
      ...     return inputs * params
      >>> examples = Examples(inputs=jnp.ones((3, 1)), targets=jnp.ones((3, 1)))
      >>> losses.predict(apply_fn, jnp.array(2.0), examples).shape
      (3, 1)
    """
    reference = examples.reference
    if reference is None:
        return apply_fn(params, examples.inputs, examples.mask)
    num_reference, num_examples = _length(reference.inputs), _length(examples.inputs)
    counted = jnp.ones(num_reference, bool) if reference.mask is None else reference.mask
    mask = jnp.concatenate([counted, jnp.zeros(num_examples, bool)])
    together = jax.tree.map(
        lambda ours, theirs: jnp.concatenate([ours, theirs]), reference.inputs, examples.inputs
    )
    return apply_fn(params, together, mask)[num_reference:]


def classification(apply_fn: ApplyFn) -> LossFn:
    """Builds the loss of a classifier: cross-entropy, and accuracy as a metric.

    Args:
      apply_fn: the model, `(params, inputs [N, ...], mask [N] or None) -> logits [N, C]`.

    Returns:
      A loss function for `make_outer_step`, which honours masks and `Examples.reference`.

    Example:
      >>> import maml_jax as mj
      >>> model = mj.models.Conv4(num_classes=5)
      >>> loss_fn = mj.losses.classification(model.apply)
    """

    def loss_fn(params, examples):
        logits = predict(apply_fn, params, examples)
        metrics = {"accuracy": accuracy(logits, examples.targets, mask=examples.mask)}
        return cross_entropy(logits, examples.targets, mask=examples.mask), metrics

    return loss_fn


def regression(apply_fn: ApplyFn) -> LossFn:
    """Builds the loss of a regressor: the mean squared error.

    Args:
      apply_fn: the model, `(params, inputs [N, ...], mask [N] or None) -> [N, ...]`.

    Returns:
      A loss function for `make_outer_step`, which honours masks and `Examples.reference`.

    Example:
      >>> import maml_jax as mj
      >>> loss_fn = mj.losses.regression(mj.models.Mlp(features=(40, 40, 1)).apply)
    """

    def loss_fn(params, examples):
        predictions = predict(apply_fn, params, examples)
        return squared_error(predictions, examples.targets, mask=examples.mask)

    return loss_fn


def _masked_mean(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Averages `[N]` values where the mask is True; NaN with gradient 0 where none is."""
    if mask is None:
        return values.mean()
    count = mask.sum()
    # The inner `where` keeps what padding computed, NaN included, out of value and gradient.
    total = jnp.where(mask, values, 0).sum()
    return jnp.where(count > 0, total / jnp.maximum(count, 1), jnp.nan)


def _length(tree: Any) -> int:
    return len(jax.tree.leaves(tree)[0])


def _outside(logits: jax.Array, labels: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Says which unmasked labels `[N]` are no class index."""
    outside = (labels < 0) | (labels >= logits.shape[-1])
    return outside if mask is None else outside & mask


def _check_labels(logits: jax.Array, labels: jax.Array) -> None:
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape [N, C], got {logits.shape}.")
    if labels.shape == logits.shape:
        raise ValueError(
            f"labels must be class indices [N], got shape {labels.shape}, which looks one-hot; "
            "pass labels.argmax(-1)."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"labels must be integer class indices, got {labels.dtype}; cast them with "
            "labels.astype(int), or use labels.argmax(-1) if they are one-hot."
        )
    if labels.shape != logits.shape[:1]:
        raise ValueError(
            f"labels must have shape [N] = {logits.shape[:1]} for logits {logits.shape}, "
            f"got {labels.shape}."
        )
