"""What a user is told when the device runs out of memory."""

import contextlib
from collections.abc import Iterator

import jax

from maml_jax.recipes import Config

# What JAX says when a program does not fit, when it is compiled, started or run.
_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory")


@contextlib.contextmanager
def explained(config: Config, *, evaluating: bool = False) -> Iterator[None]:
    """Turns JAX's error for a full device into one that says what to lower.

    Args:
      config: what is run in the block.
      evaluating: whether tasks of an evaluation are, rather than those of training.

    Yields:
      Nothing.

    Raises:
      MemoryError: with what was asked of the device, and the flags to lower.

    Example:
      >>> from maml_jax.memory_errors import explained
      >>> from maml_jax.recipes import Config
      >>> with explained(Config()):
      ...     print("it fits")
      it fits
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not any(word in str(error) for word in _WORDS):
            raise
        message = f"{_asked(config, evaluating)} JAX says: {str(error).splitlines()[0]}"
        raise MemoryError(f"the device ran out of memory; {message}") from error


def _asked(config: Config, evaluating: bool) -> str:
    classes = 1 if config.is_regression else config.way
    if evaluating:
        examples = classes * (config.shot + config.test_query_shot)
        return (
            f"a task of an evaluation has {examples} examples and {config.test_inner_steps} inner "
            "steps. Lower --test-query-shot, --test-inner-steps or --features."
        )
    examples = classes * (config.shot + config.query_shot)
    return (
        f"a meta-batch has {config.meta_batch_size} tasks x {config.inner_steps} inner steps x "
        f"{examples} examples. Start a run with a lower --meta-batch-size, --query-shot, "
        "--inner-steps or --features, or with the first-order --inner fomaml."
    )
