"""How many outer steps a run makes, and when it validates and saves."""

import dataclasses

from maml_jax.inner_checks import check_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers of a training loop, all in outer steps.

    Attributes:
      num_steps: how many outer steps in all; at least 1.
      meta_batch_size: tasks per outer step; at least 1.
      steps_per_call: outer steps per compiled call; the log has one line for each call.
      validate_every: validate at the first call's end after so many steps, and at the end.
      checkpoint_every: save likewise.
      diagnose_every: measure likewise how task gradients relate; 0 for never.

    Example:
      >>> from maml_jax.training import Schedule
      >>> Schedule(num_steps=1000, meta_batch_size=32).steps_per_call
      50
    """

    num_steps: int
    meta_batch_size: int
    steps_per_call: int = 50
    validate_every: int = 500
    checkpoint_every: int = 500
    diagnose_every: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            least = 0 if field.name == "diagnose_every" else 1
            check_count(field.name, getattr(self, field.name), at_least=least)

    def call_end(self, step: int) -> int:
        """Gives the step at which a call ends that starts after `step` outer steps.

        It is the next multiple of `steps_per_call`, or the last step: where a run stopped
        does not change where its later calls end.

        Example:
          >>> from maml_jax.training import Schedule
          >>> schedule = Schedule(num_steps=120, meta_batch_size=32)
          >>> [schedule.call_end(step) for step in (0, 30, 50, 100)]
          [50, 50, 100, 120]
        """
        multiple = (step // self.steps_per_call + 1) * self.steps_per_call
        return min(multiple, self.num_steps)

    def is_due(self, every: int, *, before: int, after: int) -> bool:
        """Says whether a call from `before` to `after` reached a multiple of `every`.

        The end of the run counts as one; 0 is never due.

        Example:
          >>> from maml_jax.training import Schedule
          >>> schedule = Schedule(num_steps=120, meta_batch_size=32)
          >>> [schedule.is_due(80, before=step, after=step + 50) for step in (0, 50, 100)]
          [False, True, True]
        """
        if every == 0:
            return False
        return after // every > before // every or after >= self.num_steps
