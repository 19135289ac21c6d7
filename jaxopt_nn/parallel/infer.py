"""Inference over all devices: ``jit`` with ``NamedSharding``, the batch split, computed and joined."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxopt_nn.core.arguments import in_words
from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.interpret.network import Network, abstract_outputs, network_of

PyTree = Any
AXIS = "batch"


def predictor(
    network: Network,
    *,
    devices: Sequence[jax.Device] | None = None,
    batch_size: int | None = None,
) -> Predictor:
    """A function ``predict(*inputs) -> outputs`` that runs a network on all devices at once, on a batch of any size.

    The program is that of the network, partitioned by the compiler over one mesh axis: inputs and outputs are split along
    their first axis, variables and states lie whole on every device, placed there once. Rows that pad a batch repeat its
    last row and are cut from the outputs.

    Results equal those of one device to the bit where a row's arithmetic does not depend on how many rows stand beside it:
    integer sums always, floats where both programs hold as many rows on each device. Otherwise a matrix product may add in
    another order: float32 agrees to about 1e-6 of the largest output. An ``apply`` that mixes rows (BatchNorm in training
    mode) sees the padding.

    Args:
      network: every leaf of its inputs and outputs has the batch as its first axis; with variables that are prepared
        (``prepare``) it runs fastest.
      devices: of one kind, CPU, GPU or TPU; all that this process can reach, if None.
      batch_size: rows of a call of the compiled program, rounded up to a multiple of the devices. A longer batch runs in
        chunks, a shorter one is padded, so that any stream of sizes compiles once. None: the whole batch in one call,
        padded to a power of two of rows on each device.

    Raises:
      ValueError: no device, a device twice or of another process, devices of two kinds, ``batch_size`` below 1.
      TypeError: ``batch_size`` is no whole number.

    Example:
      >>> net = jn.Network(lambda v, x: x @ v["kernel"], {"kernel": jnp.ones((4, 2))})
      >>> predict = jn.predictor(net, devices=jax.devices()[:2], batch_size=8)
      >>> predict(np.ones((13, 4), np.float32)).shape  # two chunks, the second filled up and cut
      (13, 2)
    """
    network = network_of(network)
    return Predictor(network, _checked(jax.local_devices() if devices is None else devices), batch_size)


class Predictor:
    """What ``predictor`` makes.

    Attributes:
      devices: in the order in which they take their parts of a batch.
      batch_size: rows of a call, a multiple of the devices, or None.
      network: whole on every device.
    """

    def __init__(
        self, network: Network, devices: tuple[jax.Device, ...], batch_size: int | None
    ):
        if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer)):
            raise TypeError(f"predictor(batch_size={batch_size!r}): pass a whole number of rows, or None")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"predictor(batch_size={batch_size}): allowed are 1 and more, or None for whole batches")
        mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
        whole, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
        self.devices = devices
        self.batch_size = None if batch_size is None else _multiple(int(batch_size), len(devices))
        self.network = jax.device_put(network, whole)

        def run(network: Network, inputs: tuple[PyTree, ...]) -> PyTree:
            outputs = network(*inputs)
            _check_outputs(outputs, len(jax.tree.leaves(inputs)[0]))
            return outputs

        self._shapes = dict[Hashable, PyTree]()
        self._run = jax.jit(run, in_shardings=(whole, self._split), out_shardings=self._split)

    def __call__(self, *inputs: PyTree) -> PyTree:
        """The outputs of ``apply`` for these inputs, as NumPy arrays with the batch as first axis.

        Two chunks at most are on their way at a time: the next is sent and started before the last is fetched. A batch of
        no rows gives outputs of no rows, of the shapes and dtypes of a longer one.

        Raises:
          ValueError: no input, an input without a batch axis, inputs of different batch sizes, an output whose first axis
            is not the batch; named by path. Inputs that ``apply`` can't take, by shape.
          TypeError: an input that is no array of numbers.
        """
        inputs = jax.tree.map(np.asarray, inputs)
        total = _batch(inputs)
        rows = self.rows(total)
        shapes = self._abstract(inputs, 2 * rows)
        if not total:
            return jax.tree.map(lambda s: np.zeros((0, *s.shape[1:]), s.dtype), shapes)
        parts: list[PyTree] = []
        running: list[tuple[PyTree, int]] = []
        for chunk, real in _chunks(inputs, total, rows):
            running.append((self._run(self.network, jax.device_put(chunk, self._split)), real))
            if len(running) > 1:
                parts.append(_fetched(*running.pop(0)))
        parts.append(_fetched(*running.pop()))
        return parts[0] if len(parts) == 1 else jax.tree.map(lambda *each: np.concatenate(each), *parts)

    def rows(self, total: int) -> int:
        """Rows of the compiled program that runs a batch of ``total`` rows."""
        if self.batch_size is not None:
            return self.batch_size
        share = -(-total // len(self.devices))
        return len(self.devices) * (1 << max(share - 1, 0).bit_length())

    def _abstract(self, inputs: tuple[PyTree, ...], rows: int) -> PyTree:
        """The outputs' shapes for ``rows`` rows of such inputs, found once for them.

        These are not the rows that will run: an output without a batch axis can't have both numbers by accident.
        """
        leaves, tree = jax.tree.flatten(inputs)
        key = tree, tuple((x.shape[1:], x.dtype) for x in leaves)
        if key not in self._shapes:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), jnp.result_type(x)), inputs)
            outputs = abstract_outputs(self.network, *like)
            _check_outputs(outputs, rows)
            self._shapes[key] = outputs
        return self._shapes[key]


def _checked(devices: Sequence[jax.Device]) -> tuple[jax.Device, ...]:
    listed = isinstance(devices, Sequence) and all(isinstance(d, jax.Device) for d in devices)
    if not listed:
        raise TypeError(f"predictor: devices is {in_words(devices)}; pass a list of some of jax.devices(), or None for all")
    devices = tuple(devices)
    if not devices:
        raise ValueError("predictor(devices=[]): no device; pass some of jax.devices(), or None for all")
    if len(set(devices)) < len(devices):
        raise ValueError(f"predictor(devices={list(map(str, devices))}): a device stands there twice")
    if len({d.platform for d in devices}) > 1:
        raise ValueError(f"predictor(devices={list(map(str, devices))}): of two kinds; one program runs on one kind")
    if any(d.process_index != jax.process_index() for d in devices):
        raise ValueError(
            "predictor: devices of another process; pass jax.local_devices(), and each process its own rows"
        )
    return devices


def _named(what: str, path: str) -> str:
    return f"{what} {path}" if path else f"the {what}"


def _multiple(rows: int, of: int) -> int:
    """``rows``, rounded up to a multiple."""
    return -(-rows // of) * of


def _batch(inputs: tuple[PyTree, ...]) -> int:
    """The number of rows, the same in every input."""
    if not inputs or not (leaves := leaves_by_path(inputs[0] if len(inputs) == 1 else inputs)):
        raise ValueError("predict: no input; pass what apply takes after its variables")
    for path, x in leaves.items():
        if x.dtype.kind in "OSUMm":
            raise TypeError(f"{_named('input', path)}: dtype {x.dtype} is no number; convert it first")
        if x.ndim == 0:
            raise ValueError(f"{_named('input', path)}: has no axis; the first axis is the batch")
    sizes = {path: len(x) for path, x in leaves.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{path} has {n}" for path, n in sizes.items())
        raise ValueError(f"predict: inputs of different batch sizes: {said} rows; pass inputs of equally many rows")
    return next(iter(sizes.values()))


def _check_outputs(outputs: PyTree, rows: int) -> None:
    for path, leaf in leaves_by_path(outputs).items():
        if leaf.shape[:1] != (rows,):
            raise ValueError(
                f"{_named('output', path)}: {leaf.dtype}{list(leaf.shape)} for {rows} rows; its first axis must be the "
                "batch, so that the devices' parts can be joined: wrap apply so that it returns such outputs only"
            )


def _chunks(inputs: PyTree, total: int, rows: int) -> Iterator[tuple[PyTree, int]]:
    """``(inputs, real)``: ``rows`` rows each, of which the first ``real`` are the batch's; the last of these pads."""
    for start in range(0, total, rows):
        real = min(rows, total - start)
        part = jax.tree.map(lambda x, start=start: x[start : start + rows], inputs)
        if real < rows:
            part = jax.tree.map(lambda x, n=rows - real: np.concatenate([x, np.repeat(x[-1:], n, axis=0)]), part)
        yield part, real


def _fetched(outputs: PyTree, real: int) -> PyTree:
    """On the host, without the rows that pad."""
    return jax.tree.map(lambda x: np.asarray(x)[:real], outputs)
