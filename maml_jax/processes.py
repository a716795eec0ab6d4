"""Several processes, on one machine or many, that train as one.

Each runs the same program on the same configuration and draws the same keys; what differs is
which devices, and so which tasks, are its own. Process 0 alone has the folder of the run:
what is in it reaches the others through `from_first`, so they need no shared disk.

After `connect`, JAX notes SIGTERM itself, and tells all processes to stop at one step.
"""

import dataclasses
import ipaddress
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

_HEARTBEAT_SECONDS = 10
_CHUNK_BYTES = 2**26
_LOST_WORDS = (
    "Gloo",
    "Connection closed by peer",
    "Connection reset by peer",
    "coordination service",
    "CoordinationService",
    "DEADLINE_EXCEEDED",
    "UNAVAILABLE",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which processes train together.

    Attributes:
      distributed: train with other processes, each started with the same command. On Cloud
        TPU, Slurm and Kubernetes they find each other; elsewhere the other three say how.
      coordinator: HOST:PORT of process 0, the same for all; any process that reaches it can
        join, so keep it within a trusted network.
      num_processes: how many processes.
      process_id: which one this is, from 0.

    Example:
      >>> from maml_jax.processes import Cluster
      >>> Cluster().distributed
      False
    """

    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


class ProcessError(RuntimeError):
    """Process 0 could not do what all of them wait for."""


def connect(cluster: Cluster) -> None:
    """Joins the other processes; to be called before JAX computes anything.

    Args:
      cluster: which processes.

    Raises:
      ValueError: if addresses are given by halves or malformed, if nothing tells where the others
        are, or if JAX has started already.
      OSError: if the others do not answer.

    Example:
      >>> from maml_jax.processes import Cluster, connect
      >>> connect(Cluster())  # This process trains alone.
    """
    _check_cluster(cluster)
    if not cluster.distributed:
        return
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.num_processes,
            cluster.process_id,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            coordinator_bind_address=_bind_address(cluster.coordinator),
        )
    except ValueError as error:
        raise ValueError(
            "--distributed found no cluster (Cloud TPU, Slurm, Kubernetes, Open MPI); give "
            f"--coordinator HOST:PORT, --num-processes and --process-id. JAX says: {error}"
        ) from error
    except RuntimeError as error:
        if not is_lost_process(error):
            raise ValueError(
                "connect must be called once, before JAX computes anything. JAX says: "
                f"{str(error).splitlines()[0]}"
            ) from error
        raise ConnectionError(
            f"the processes did not find each other at {cluster.coordinator or 'the cluster'}; "
            f"start {cluster.num_processes or 'all'} of them within five minutes, with the same "
            f"address and different numbers. JAX says: {str(error).splitlines()[0]}"
        ) from error


def _check_cluster(cluster: Cluster) -> None:
    given = (cluster.coordinator, cluster.num_processes, cluster.process_id)
    coordinator, num_processes, process_id = given
    if given == (None, None, None):
        return
    if (
        not cluster.distributed
        or coordinator is None
        or num_processes is None
        or process_id is None
    ):
        raise ValueError(
            "--coordinator, --num-processes and --process-id go together, with --distributed, got "
            f"--distributed {cluster.distributed} with {given}; on Cloud TPU, Slurm and Kubernetes "
            "give --distributed alone."
        )
    _, colon, port = coordinator.rpartition(":")
    if not (colon and port.isdigit()):
        raise ValueError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}.")
    if not 0 <= process_id < num_processes:
        raise ValueError(
            "--process-id must be from 0 to below --num-processes, got "
            f"{process_id} of {num_processes}."
        )


def _bind_address(coordinator: str | None) -> str | None:
    """Listens where the others call, if that is this machine alone; else JAX listens anywhere."""
    host = "" if coordinator is None else coordinator.rpartition(":")[0].strip("[]")
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return coordinator if loopback else None


def connected() -> bool:
    """Tells whether `connect` has joined others; unlike `several`, starts nothing of JAX."""
    return jax.distributed.is_initialized()


def several() -> bool:
    """Tells whether other processes train with this one."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Tells whether this is process 0, which alone reads and writes the folder of the run."""
    return jax.process_index() == 0


def from_first(make: Callable[[], bytes]) -> bytes:
    """Lets process 0 make something, and gives it to all; a failure fails in all.

    Every process must call it at the same place of the program.

    Args:
      make: called in process 0 only.

    Returns:
      What it returned.

    Raises:
      ProcessError: in the other processes, if `make` raised; in process 0 what it raised.

    Example:
      >>> from maml_jax.processes import from_first
      >>> from_first(lambda: b"configuration")
      b'configuration'
    """
    if not several():
        return make()
    error, content = None, b""
    if is_first():
        try:
            content = make()
        except Exception as raised:
            error, content = raised, f"{type(raised).__name__}: {raised}".encode()
    header = [error is not None, *divmod(len(content), _CHUNK_BYTES)]
    failed, num_chunks, rest = map(int, _broadcast(np.array(header, np.int32)))
    sizes = [_CHUNK_BYTES] * num_chunks + [rest] * (rest > 0)
    content = b"".join(
        _broadcast(np.frombuffer(content[start : start + size].ljust(size), np.uint8))
        .astype(np.uint8)
        .tobytes()
        for start, size in zip(itertools.count(0, _CHUNK_BYTES), sizes, strict=False)
    )
    if error is not None:
        raise error
    if failed:
        raise ProcessError(f"process 0 failed: {content.decode()}")
    return content


def first_does(action: Callable[[], object]) -> None:
    """Lets process 0 do something while all wait; a failure fails in all.

    Args:
      action: called in process 0 only.

    Raises:
      ProcessError: as `from_first`.

    Example:
      >>> from maml_jax.processes import first_does
      >>> first_does(lambda: print("written"))
      written
    """

    def make() -> bytes:
        action()
        return b""

    from_first(make)


def is_lost_process(error: BaseException) -> bool:
    """Tells whether an error means that another process is gone.

    Args:
      error: what a computation of several processes raised.

    Returns:
      Whether it is one of the connection.

    Example:
      >>> from maml_jax.processes import is_lost_process
      >>> is_lost_process(ValueError("Gloo all-reduce failed: Connection closed by peer"))
      True
    """
    if isinstance(error, ProcessError):  # Process 0 is there: it tells what it could not do.
        return False
    return isinstance(error, (RuntimeError, ValueError)) and any(
        word in str(error) for word in _LOST_WORDS
    )


def put(array, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every process has where a sharding says, on other machines too.

    Args:
      array: an array or a typed random key, the same in every process.
      sharding: over devices of any processes.

    Returns:
      The array; in one process what `jax.device_put` gives.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.processes import put
      >>> print(put(jnp.arange(3), jax.sharding.SingleDeviceSharding(jax.devices()[0])))
      [0 1 2]
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return jax.jit(lambda array: array, out_shardings=sharding)(array)
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    here = np.asarray(array)
    return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])


def on_this_process(tree):
    """Copies arrays that every device has to the default device of this process.

    What is computed from the copies is this process's own affair, and waits for no other.

    Args:
      tree: a tree of arrays, each whole on every device.

    Returns:
      The tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.processes import on_this_process
      >>> print(on_this_process(jnp.arange(3)))
      [0 1 2]
    """
    if not several():
        return tree
    return jax.tree.map(
        lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf, tree
    )


def _broadcast(array: np.ndarray) -> np.ndarray:
    """Gives all processes the integers of process 0; a sum with zeros keeps every bit."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))
