"""What to train: one configuration per published experiment, named after its source.

Inner learning rates are for the MEAN cross-entropy over the support set. The MAML
paper's code sums it over the N·K support examples and divides by K, so its rates are
multiplied by N here: 0.4 (5-way) is 2.0, 0.1 (20-way) is 2.0.
"""

import dataclasses
from typing import Literal, get_args, get_origin

from maml_jax.aggregation.named import from_text
from maml_jax.checks import check_choice
from maml_jax.inner_checks import check_count, check_rate

Dataset = Literal["glyphs", "omniglot", "cifar_fs", "fc100", "image_folder", "sinusoid"]
Model = Literal["conv4", "conv4_pool", "resnet12", "mlp"]
Inner = Literal["maml", "fomaml", "anil", "boil", "meta_sgd", "lslr", "reptile"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a training run and its evaluation.

    Attributes:
      dataset: where tasks come from.
      data_dir: folder of prepared data sets, or the root of an image folder; by default
        $MAML_JAX_DATA_DIR, then that of TensorFlow Datasets.
      way: classes per task.
      shot: support examples per class (regression: per task).
      query_shot: query examples per class (or task) in training.
      test_query_shot: query examples per class (or task) in validation and test.
      rotations: take each class turned by 90, 180 and 270 degrees as a class of its own.
      image_size: side of the images in pixels, where the data set leaves it open.
      colour: read an image folder in colour, normalised by channel; else as black ink on white.
      model: the network.
      features: filters per block (conv4, conv4_pool), or width of both hidden layers (mlp).
      activations: dtype of the activations of image models; parameters, batch statistics and
        losses stay float32. bfloat16 halves memory traffic on accelerators.
      inner: the inner loop.
      inner_learning_rate: of SGD on the mean loss; for meta_sgd and lslr the start value.
      inner_steps: inner steps in training.
      test_inner_steps: inner steps in validation and test.
      differentiate: how second derivatives are computed; "mixed" keeps only parameters of each
        inner step, for many inner steps in little memory; "reverse" for reptile, which has none.
      outer_learning_rate: of Adam; for reptile of SGD.
      outer_decay: keep the outer learning rate, or let it fall to 0 along a half cosine.
      clip: largest global norm of the aggregated gradient; 0 does not clip.
      meta_batch_size: tasks per outer step.
      aggregation: how task gradients become one: mean, sum, median, norm_clipped, upgrad, …, or
        with a number, tilted:1.0; a wrong name lists all.
      gain: how far a step goes for the number of tasks, with outer_learning_rate for one task.
      tasks_per_group: draw each task's classes from one group (alphabet, script, superclass),
        which so many tasks of a meta-batch share; 0 draws them from all.
      outer_steps: outer steps in all.
      steps_per_call: outer steps per compiled call.
      validate_every: outer steps between validations.
      diagnose_every: outer steps between measurements of how task gradients relate; 0 for none.
      checkpoint_every: outer steps between checkpoints.
      validation_tasks: tasks per validation.
      test_tasks: tasks of the final evaluation.
      transductive: whether query examples are normalised together at test time.
      on_nonfinite: what to do with a task whose loss or gradient is not finite.
      seed: of parameters and tasks.
      source: the publication that the settings follow, or "".
      reported: what it reports for them, or "".

    Example:
      >>> from maml_jax.recipes import PRESETS
      >>> PRESETS["omniglot-5way-1shot-finn2017"].inner_learning_rate
      2.0
    """

    dataset: Dataset = "glyphs"
    data_dir: str | None = None
    way: int = 5
    shot: int = 1
    query_shot: int = 5
    test_query_shot: int = 15
    rotations: bool = False
    image_size: int = 28
    colour: bool = True
    model: Model = "conv4"
    features: int = 64
    activations: Literal["float32", "bfloat16"] = "float32"
    inner: Inner = "maml"
    inner_learning_rate: float = 2.0
    inner_steps: int = 1
    test_inner_steps: int = 3
    differentiate: Literal["reverse", "mixed"] = "reverse"
    outer_learning_rate: float = 1e-3
    outer_decay: Literal["none", "cosine"] = "none"
    clip: float = 0.0
    meta_batch_size: int = 32
    aggregation: str = "mean"
    gain: Literal["none", "linear", "square_root", "adascale"] = "none"
    tasks_per_group: int = 0
    outer_steps: int = 2000
    steps_per_call: int = 25
    validate_every: int = 250
    diagnose_every: int = 0
    checkpoint_every: int = 250
    validation_tasks: int = 200
    test_tasks: int = 1000
    transductive: bool = True
    on_nonfinite: Literal["raise", "skip"] = "skip"
    seed: int = 0
    source: str = ""
    reported: str = ""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if get_origin(field.type) is Literal:
                check_choice(field.name, getattr(self, field.name), get_args(field.type))
            elif field.type is bool:
                check_choice(field.name, getattr(self, field.name), (False, True))
        for name in ("inner_learning_rate", "outer_learning_rate"):
            check_rate(getattr(self, name), name=name)
        counts = (
            "shot query_shot test_query_shot image_size features meta_batch_size outer_steps "
            "steps_per_call validate_every checkpoint_every"
        )
        for name in counts.split():
            check_count(name, getattr(self, name), at_least=1)
        leasts = {"way": 2, "inner_steps": 0, "test_inner_steps": 0, "seed": 0}
        for name, least in {**leasts, "tasks_per_group": 0, "diagnose_every": 0}.items():
            check_count(name, getattr(self, name), at_least=least)
        for name in ("validation_tasks", "test_tasks"):
            check_count(name, getattr(self, name), at_least=2)
        if not 0 <= self.clip < float("inf"):
            raise ValueError(f"clip must be at least 0 and finite, got {self.clip}.")
        if not isinstance(self.aggregation, str):
            raise TypeError(f"aggregation must be a text, got {self.aggregation!r}.")
        from_text(self.aggregation)

    @property
    def is_regression(self) -> bool:
        """Whether tasks are regression tasks."""
        return self.dataset == "sinusoid"


_FINN = "Finn, Abbeel, Levine, ICML 2017, https://arxiv.org/abs/1703.03400"

_OMNIGLOT = Config(
    dataset="omniglot",
    rotations=True,
    model="conv4",
    features=64,
    query_shot=3,
    test_query_shot=15,
    inner_steps=1,
    test_inner_steps=3,
    meta_batch_size=32,
    outer_steps=60_000,
    validate_every=1000,
    checkpoint_every=500,
    validation_tasks=300,
    source=_FINN + ", table 1",
)

_CIFAR = Config(
    dataset="cifar_fs",
    model="conv4_pool",
    features=32,
    inner_learning_rate=0.05,
    inner_steps=5,
    test_inner_steps=10,
    meta_batch_size=4,
    query_shot=15,
    outer_steps=60_000,
    clip=10.0,
)

PRESETS: dict[str, Config] = {
    "glyphs-5way-1shot": Config(
        dataset="glyphs",
        features=32,
        meta_batch_size=16,
        query_shot=5,
        outer_steps=1200,
        outer_decay="cosine",
        validate_every=400,
        checkpoint_every=400,
        validation_tasks=100,
        test_tasks=600,
    ),
    "omniglot-5way-1shot-finn2017": dataclasses.replace(
        _OMNIGLOT, way=5, shot=1, reported="accuracy 98.7% ± 0.4%"
    ),
    "omniglot-5way-5shot-finn2017": dataclasses.replace(
        _OMNIGLOT, way=5, shot=5, query_shot=5, reported="accuracy 99.9% ± 0.1%"
    ),
    "omniglot-20way-1shot-finn2017": dataclasses.replace(
        _OMNIGLOT,
        way=20,
        shot=1,
        query_shot=1,
        test_query_shot=5,
        inner_steps=5,
        test_inner_steps=5,
        meta_batch_size=16,
        reported="accuracy 95.8% ± 0.3%",
    ),
    "omniglot-20way-5shot-finn2017": dataclasses.replace(
        _OMNIGLOT,
        way=20,
        shot=5,
        query_shot=5,
        test_query_shot=5,
        inner_steps=5,
        test_inner_steps=5,
        meta_batch_size=16,
        reported="accuracy 98.9% ± 0.2%",
    ),
    "cifarfs-5way-1shot": _CIFAR,
    "cifarfs-5way-5shot": dataclasses.replace(_CIFAR, shot=5),
    "fc100-5way-5shot": dataclasses.replace(_CIFAR, dataset="fc100", shot=5),
    "sinusoid-10shot-finn2017": Config(
        dataset="sinusoid",
        shot=10,
        query_shot=10,
        test_query_shot=100,
        model="mlp",
        features=40,
        inner_learning_rate=0.01,
        inner_steps=1,
        test_inner_steps=10,
        meta_batch_size=25,
        outer_steps=70_000,
        steps_per_call=500,
        validate_every=5000,
        checkpoint_every=5000,
        validation_tasks=600,
        test_tasks=1000,
        source=_FINN + ", section 5.1 and table 2",
        reported="query MSE 0.67 / 0.38 / 0.35 after 1 / 5 / 10 steps (5-shot at test)",
    ),
}
"""The published experiments and the embedded default, by name."""

DEFAULT_PRESET = "glyphs-5way-1shot"

_WHICH_TASKS = ("dataset", "way", "shot", "rotations", "tasks_per_group")


def named_by_tasks(preset: str, config: Config) -> tuple[str, Config]:
    """Says what a run is whose settings began as a preset's.

    Args:
      preset: the preset's name.
      config: its settings, perhaps changed.

    Returns:
      The run's name and settings: the preset's name, and what its source reported, only if the
      tasks are the preset's.

    Example:
      >>> import dataclasses
      >>> from maml_jax.recipes import PRESETS, named_by_tasks
      >>> wider = dataclasses.replace(PRESETS["omniglot-5way-1shot-finn2017"], way=10)
      >>> named_by_tasks("omniglot-5way-1shot-finn2017", wider)[0]
      'omniglot-10way-1shot'
    """
    given = PRESETS[preset]
    if all(getattr(config, name) == getattr(given, name) for name in _WHICH_TASKS):
        return preset, config
    way = "" if config.is_regression else f"-{config.way}way"
    if config.reported == given.reported:
        config = dataclasses.replace(config, reported="")
    return f"{config.dataset.replace('_', '')}{way}-{config.shot}shot", config
