"""Task distributions: sinusoids, and few-shot images with or without a download.

Importing this touches neither the network nor the environment; TensorFlow Datasets,
matplotlib and Pillow are imported by the functions that use them.
"""

from maml_jax.data.baseline import nearest_neighbour_accuracy
from maml_jax.data.cifar import cifar_fs, fc100
from maml_jax.data.classes import ImageClasses, Splits
from maml_jax.data.episodes import episodes, grouped_episodes
from maml_jax.data.glyphs import glyphs
from maml_jax.data.image_folder import image_folder
from maml_jax.data.omniglot import omniglot
from maml_jax.data.prepare import prepare
from maml_jax.data.sinusoid import sinusoid

__all__ = [
    "ImageClasses",
    "Splits",
    "cifar_fs",
    "episodes",
    "fc100",
    "glyphs",
    "grouped_episodes",
    "image_folder",
    "nearest_neighbour_accuracy",
    "omniglot",
    "prepare",
    "sinusoid",
]
