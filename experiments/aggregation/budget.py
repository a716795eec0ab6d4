"""How much of everything: the full study, and a quick one that only shows that it runs."""

import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Sizes of the experiments.

    Attributes:
      folder: where results go.
      steps: outer steps on F1 at a meta-batch of 1.
      sizes: meta-batch sizes on F1.
      tuning_seeds: seeds that choose the learning rate on F1.
      seeds: seeds that are reported on F1; four times as many in E2, E3, E6 and E7.
      f2_steps: outer steps on F2 at a meta-batch of 1.
      f2_sizes: meta-batch sizes on F2.
      f2_tuning_seeds: seeds that choose the learning rate on F2.
      f2_seeds: seeds that are reported on F2.
      f2_rhos: correlations on F2.
      f2_rates: learning rates of a grid on F2.
      f2_tasks: held-out tasks on F2.
      is_quick: whether to leave most cells out.
    """

    folder: pathlib.Path
    steps: int = 1024
    sizes: tuple = (1, 4, 16, 64)
    tuning_seeds: int = 32
    seeds: int = 64
    f2_steps: int = 2048
    f2_sizes: tuple = (1, 4, 16)
    f2_tuning_seeds: int = 8
    f2_seeds: int = 24
    f2_rhos: tuple = (0.0, 0.3, 0.9)
    f2_rates: int = 9
    f2_tasks: int = 2000
    is_quick: bool = False

    def few(self, items, count):
        """Gives all items, or the first `count` of them in a quick run."""
        return list(items)[: count if self.is_quick else None]


def full(folder):
    """The study as reported."""
    return Budget(folder=pathlib.Path(folder))


def quick(folder):
    """The same code at sizes that say nothing about the questions."""
    return Budget(
        folder=pathlib.Path(folder),
        steps=64,
        sizes=(1, 4),
        tuning_seeds=4,
        seeds=8,
        f2_steps=24,
        f2_sizes=(1, 4),
        f2_tuning_seeds=2,
        f2_seeds=3,
        f2_rhos=(0.0, 0.9),
        f2_rates=3,
        f2_tasks=50,
        is_quick=True,
    )
