"""One PyTorch peer as a process that does one outer gradient whenever it is asked.

Runs in the peer's own environment, which has no JAX; `peer_process.py` talks to it.

    python torch_side.py PEER WORKLOAD.npz

Peers: loop (autograd), func_loop, func_loop_compiled, func_vmap, func_vmap_compiled,
higher, learn2learn, torchopt. Each computes the mean over tasks of the second-order MAML
gradient. `nn.BatchNorm2d` under `torch.func.vmap` drops a term of the second-order gradient
(PyTorch 2.13), so the vmapped peers have a norm written out; the others have PyTorch's own.
"""

import sys

import numpy as np
import serving
import torch
import torch.nn.functional as F
from torch import nn


def to_torch(arrays):
    """Gives parameters in PyTorch's layout, and tasks with channels first."""
    params, tasks = {}, {}
    for name, value in arrays.items():
        if name.startswith("params/"):
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
            value = value.T if value.ndim == 2 else value
            key = name.removeprefix("params/").replace("/", ".")
            params[key] = torch.from_numpy(np.ascontiguousarray(value))
        else:
            value = value.transpose(0, 1, 4, 2, 3) if value.ndim == 5 else value
            tensor = torch.from_numpy(np.ascontiguousarray(value))
            tasks[name] = tensor if tensor.is_floating_point() else tensor.long()
    return params, tasks


def from_torch(grads):
    """Gives a gradient with our names and layout."""
    arrays = {}
    for key, value in grads.items():
        value = value.detach().cpu().numpy()
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        value = value.T if value.ndim == 2 else value
        arrays["params/" + key.replace(".", "/")] = value
    return arrays


class Net:
    """The network of a workload as a function of a dict of parameters."""

    def __init__(self, settings, own_norm):
        self.settings = settings
        self.own_norm = own_norm
        self.activation = F.softplus if settings["smooth"] else F.relu

    def norm(self, x, scale, bias):
        if not self.own_norm:
            return F.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
        shape = (1, -1, 1, 1)
        inverse = torch.rsqrt(variance + 1e-5) * scale.reshape(shape)
        return (x - mean) * inverse + bias.reshape(shape)

    def __call__(self, params, x):
        if self.settings["name"] == "W3":
            for layer in ("hidden_0", "hidden_1"):
                x = F.linear(x, params[f"{layer}.kernel"], params[f"{layer}.bias"])
                x = self.activation(x)
            return F.linear(x, params["head.kernel"], params["head.bias"])
        pooling = self.settings["name"] == "W2"
        for i in range(4):
            block = f"block_{i}"
            x = F.conv2d(x, params[f"{block}.conv.kernel"], stride=1 if pooling else 2, padding=1)
            x = self.norm(x, params[f"{block}.norm.scale"], params[f"{block}.norm.bias"])
            x = self.activation(x)
            if pooling:
                x = F.avg_pool2d(x, 2) if self.settings["smooth"] else F.max_pool2d(x, 2)
        # Our head sees height, width, channels, in this order.
        x = x.permute(0, 2, 3, 1).flatten(1) if pooling else x.mean((2, 3))
        return F.linear(x, params["head.kernel"], params["head.bias"])

    def loss(self, params, inputs, targets):
        out = self(params, inputs)
        if self.settings["name"] == "W3":
            return (out - targets).square().mean()
        return F.cross_entropy(out, targets)


class Module(nn.Module):
    """The same network as a module, for peers that want one."""

    def __init__(self, net, params):
        super().__init__()
        self.net = net
        self.names = list(params)
        for name, value in params.items():
            self.register_parameter(name.replace(".", "__"), nn.Parameter(value.clone()))

    def forward(self, inputs, targets):
        params = {name: getattr(self, name.replace(".", "__")) for name in self.names}
        return self.net.loss(params, inputs, targets)

    def grads(self, num_tasks):
        named = {name: getattr(self, name.replace(".", "__")) for name in self.names}
        return {name: value.grad / num_tasks for name, value in named.items()}


def split(tasks):
    """Gives the tasks one by one: support inputs and targets, query inputs and targets."""
    names = ("support/inputs", "support/targets", "query/inputs", "query/targets")
    return list(zip(*(tasks[name] for name in names), strict=True))


def loop(settings, params, tasks):
    net = Net(settings, own_norm=False)
    params = {name: value.clone().requires_grad_() for name, value in params.items()}
    each = split(tasks)

    def gradient():
        total = None
        for support_inputs, support_targets, query_inputs, query_targets in each:
            fast = params
            for _ in range(settings["num_steps"]):
                loss = net.loss(fast, support_inputs, support_targets)
                grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                moved = zip(fast.items(), grads, strict=True)
                fast = {k: v - settings["learning_rate"] * g for (k, v), g in moved}
            loss = net.loss(fast, query_inputs, query_targets)
            grads = torch.autograd.grad(loss, list(params.values()))
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
        return dict(zip(params, (g / len(each) for g in total), strict=True))

    return gradient


def func_task_gradient(settings, own_norm):
    net = Net(settings, own_norm=own_norm)

    def task_loss(params, support_inputs, support_targets, query_inputs, query_targets):
        for _ in range(settings["num_steps"]):
            grads = torch.func.grad(net.loss)(params, support_inputs, support_targets)
            params = {k: v - settings["learning_rate"] * grads[k] for k, v in params.items()}
        return net.loss(params, query_inputs, query_targets)

    return torch.func.grad(task_loss)


def func_loop(settings, params, tasks, compiled=False):
    one = func_task_gradient(settings, own_norm=compiled)
    one = torch.compile(one) if compiled else one
    each = split(tasks)

    def gradient():
        total = None
        for task in each:
            grads = one(params, *task)
            total = grads if total is None else {k: total[k] + g for k, g in grads.items()}
        return {k: g / len(each) for k, g in total.items()}

    return gradient


def func_vmap(settings, params, tasks, compiled=False):
    one = func_task_gradient(settings, own_norm=True)
    names = ("support/inputs", "support/targets", "query/inputs", "query/targets")
    stacked = [tasks[name] for name in names]

    def all_tasks(params, *stacked):
        grads = torch.func.vmap(one, in_dims=(None, 0, 0, 0, 0))(params, *stacked)
        return {k: g.mean(0) for k, g in grads.items()}

    all_tasks = torch.compile(all_tasks) if compiled else all_tasks
    return lambda: all_tasks(params, *stacked)


def with_higher(settings, params, tasks):
    import higher

    module = Module(Net(settings, own_norm=False), params)
    optimizer = torch.optim.SGD(module.parameters(), lr=settings["learning_rate"])
    each = split(tasks)

    def gradient():
        module.zero_grad()
        for support_inputs, support_targets, query_inputs, query_targets in each:
            context = higher.innerloop_ctx(module, optimizer, copy_initial_weights=False)
            with context as (fast, fast_optimizer):
                for _ in range(settings["num_steps"]):
                    fast_optimizer.step(fast(support_inputs, support_targets))
                fast(query_inputs, query_targets).backward()
        return module.grads(len(each))

    return gradient


def with_learn2learn(settings, params, tasks):
    import learn2learn

    module = Module(Net(settings, own_norm=False), params)
    algorithm = learn2learn.algorithms.MAML(module, lr=settings["learning_rate"])
    each = split(tasks)

    def gradient():
        algorithm.zero_grad()
        for support_inputs, support_targets, query_inputs, query_targets in each:
            learner = algorithm.clone()
            for _ in range(settings["num_steps"]):
                learner.adapt(learner(support_inputs, support_targets))
            learner(query_inputs, query_targets).backward()
        return module.grads(len(each))

    return gradient


def with_torchopt(settings, params, tasks):
    import torchopt

    module = Module(Net(settings, own_norm=False), params)
    optimizer = torchopt.MetaSGD(module, lr=settings["learning_rate"])
    each = split(tasks)
    leaves = list(module.parameters())  # `step` puts computed tensors in their place.

    def gradient():
        for leaf in leaves:
            leaf.grad = None
        start = torchopt.extract_state_dict(module, by="reference")
        start_optimizer = torchopt.extract_state_dict(optimizer, by="reference")
        for support_inputs, support_targets, query_inputs, query_targets in each:
            for _ in range(settings["num_steps"]):
                optimizer.step(module(support_inputs, support_targets))
            module(query_inputs, query_targets).backward()
            torchopt.recover_state_dict(module, start)
            torchopt.recover_state_dict(optimizer, start_optimizer)
        return module.grads(len(each))

    return gradient


PEERS = {
    "loop": loop,
    "func_loop": func_loop,
    "func_loop_compiled": lambda *given: func_loop(*given, compiled=True),
    "func_vmap": func_vmap,
    "func_vmap_compiled": lambda *given: func_vmap(*given, compiled=True),
    "higher": with_higher,
    "learn2learn": with_learn2learn,
    "torchopt": with_torchopt,
}


def main():
    """Serves the peer until the input ends."""
    peer, path = sys.argv[1:]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings, arrays = serving.read(path)
    params, tasks = to_torch(arrays)
    torch.set_float32_matmul_precision("high" if settings["tf32"] else "highest")
    params = {name: value.to(device) for name, value in params.items()}
    tasks = {name: value.to(device) for name, value in tasks.items()}
    gradient = PEERS[peer](settings, params, tasks)

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    wait(None)
    facts = {"torch": torch.__version__, "device": device}
    serving.serve(facts, gradient, from_torch, wait)


if __name__ == "__main__":
    main()
