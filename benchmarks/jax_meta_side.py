"""jax-meta-learning 1.0.3 as a process that does one outer gradient whenever it is asked.

Runs in an environment with the released `jax-meta`, whose `MAML` class does the work; the
network, which users of that package bring, is written here in plain JAX on `lax.conv`, as its
own networks are.

    python jax_meta_side.py jax_meta WORKLOAD.npz
"""

import collections
import sys

import jax
import jax.numpy as jnp
import numpy as np
import serving
from jax_meta.metalearners import MAML

Examples = collections.namedtuple("Examples", ["inputs", "targets"])


class Model:
    """The network of a workload with the `apply` that jax-meta calls."""

    def __init__(self, settings):
        self.settings = settings
        self.activation = jax.nn.softplus if settings["smooth"] else jax.nn.relu

    def apply(self, params, state, inputs):
        """Gives the outputs, and the state as it is."""
        dense = self._mlp if self.settings["name"] == "W3" else self._conv4
        return dense(params, inputs), state

    def _mlp(self, params, x):
        for layer in ("hidden_0", "hidden_1"):
            x = self.activation(x @ params[f"{layer}/kernel"] + params[f"{layer}/bias"])
        return x @ params["head/kernel"] + params["head/bias"]

    def _conv4(self, params, x):
        pooling = self.settings["name"] == "W2"
        for i in range(4):
            kernel = params[f"block_{i}/conv/kernel"]
            stride = (1, 1) if pooling else (2, 2)
            layout = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, stride, ((1, 1), (1, 1)), dimension_numbers=layout
            )
            mean = x.mean((0, 1, 2))
            inverse = jax.lax.rsqrt(jnp.square(x - mean).mean((0, 1, 2)) + 1e-5)
            x = (x - mean) * inverse * params[f"block_{i}/norm/scale"]
            x = self.activation(x + params[f"block_{i}/norm/bias"])
            x = self._pool(x) if pooling else x
        x = x.reshape(len(x), -1) if pooling else x.mean((1, 2))
        return x @ params["head/kernel"] + params["head/bias"]

    def _pool(self, x):
        size, strides = (1, 2, 2, 1), (1, 2, 2, 1)
        if self.settings["smooth"]:
            return jax.lax.reduce_window(x, 0.0, jax.lax.add, size, strides, "VALID") / 4
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, strides, "VALID")


class RegressionMAML(MAML):
    """jax-meta's MAML on the squared error."""

    def loss(self, params, state, inputs, targets, args):
        """Gives the loss, and what the base class wants beside it."""
        outputs, state = self.model.apply(params, state, inputs, *args)
        loss = jnp.square(outputs - targets).mean()
        return loss, (state, {"loss": loss})


def main():
    """Serves the peer until the input ends."""
    settings, arrays = serving.read(sys.argv[2])
    params = {
        name.removeprefix("params/"): jnp.asarray(value)
        for name, value in arrays.items()
        if name.startswith("params/")
    }
    sets = [
        Examples(arrays[f"{part}/inputs"], arrays[f"{part}/targets"])
        for part in ("support", "query")
    ]
    sets = jax.device_put(sets)
    kind = RegressionMAML if settings["name"] == "W3" else MAML
    learner = kind(Model(settings), settings["num_steps"], settings["learning_rate"])
    grad = jax.jit(
        lambda params, sets: jax.grad(learner.batch_outer_loss, has_aux=True)(
            params, (), *sets, ()
        )[0]
    )
    serving.serve(
        {"jax": jax.__version__, "device": jax.devices()[0].device_kind},
        lambda: grad(params, sets),
        lambda grads: {f"params/{name}": np.asarray(g) for name, g in grads.items()},
        jax.block_until_ready,
    )


if __name__ == "__main__":
    main()
