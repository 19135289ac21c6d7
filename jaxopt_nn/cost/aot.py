"""Ahead-of-time compilation: what a program weighs on a TPU, with no TPU present."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.cost.bytes import memory_analysis
from jaxopt_nn.cost.hlo import Module, estimated_cycles, parse, written
from jaxopt_nn.tensors.base import is_compressed, nbytes

PyTree = Any
GIB = 2**30

#: Generation -> (the layout of one host, GiB of memory of one device), after cloud.google.com/tpu/docs,
#: v4 to v6e. A v4 chip has 32 GiB and two cores; ahead of time each core is a device of its own.
GENERATIONS = {"v4": ("2x2x1", 16), "v5e": ("2x2", 16), "v5p": ("2x2x1", 95), "v6e": ("2x2", 32)}

#: What libtpu asks of the machine when it loads; without them it looks for a TPU in the network.
ENVIRONMENT = {
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

_TOO_LARGE = re.compile(r"Ran out of memory on HBM.*?\(([\d.]+)([KMGT]?)\) exceeds available HBM", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class WeightCopy:
    """An array of a layer's size, made of weights, that the program writes to memory.

    Attributes:
      paths: the leaves of ``variables`` that it is made of.
      instruction, opcode: the HLO instruction that writes it. op_name: its place in the traced function.
      dtype, shape, nbytes: of what is written. dtype is in HLO's spelling: ``bf16``, ``f32``, ``s8``.
      on_chip: written to memory on the chip (VMEM), not to HBM, where it would be a temporary.
    """

    paths: tuple[str, ...]
    instruction: str
    opcode: str
    op_name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    on_chip: bool

    def __str__(self) -> str:
        shape = ",".join(map(str, self.shape))
        where = "on chip" if self.on_chip else "in memory"
        what = f"%{self.instruction} ({self.opcode}) writes {self.dtype}[{shape}] {where}"
        return f"{', '.join(self.paths)}: {what}, from {self.op_name!r}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program; all bytes are of one device.

    Attributes:
      topology: what it is compiled for.
      argument_bytes: all arguments, unused ones included, at the backend's width and padding.
      output_bytes, temp_bytes, code_bytes: results, temporaries in HBM (not those on chip), program.
      hbm_bytes: memory of one device, None where unknown.
      fits: whether the compiler found room for it, and ``total_bytes`` is at most ``hbm_bytes``.
      message: the compiler's words where it found no room, else ``""``. Then argument and output bytes are
        the arrays' own, ``temp_bytes`` is the rest of the total that it names (to 0.01 GiB), ``hlo`` empty.
      hlo: the optimized program's text.
      leaves: path -> abstract leaf of ``variables``.
    """

    topology: str
    argument_bytes: int
    output_bytes: int
    temp_bytes: int
    code_bytes: int
    hbm_bytes: int | None
    fits: bool
    message: str
    hlo: str = dataclasses.field(repr=False)
    leaves: dict[str, Any] = dataclasses.field(repr=False)

    @property
    def total_bytes(self) -> int:
        """Arguments, outputs, temporaries and code together."""
        return self.argument_bytes + self.output_bytes + self.temp_bytes + self.code_bytes

    @functools.cached_property
    def module(self) -> Module | None:
        """The parsed program, None where there is none."""
        return parse(self.hlo) if self.hlo else None

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's estimate, see ``hlo.estimated_cycles``; None where it gives none."""
        return estimated_cycles(self.module) if self.module else None

    def weight_copies(self, shapes: Iterable[Sequence[int]] | None = None) -> list[WeightCopy]:
        """The arrays of a layer's size or more, of any dtype, made of ``variables`` alone, that are written.

        Looked for are copies of compressed weights: of compressed tensors, and of integer leaves of two axes
        or more (a prefetch of the codes is one). Of other leaves (scales) only what is larger than the leaf
        counts. An array that depends on the inputs too, be it by an index (a lookup in an embedding), is an
        activation.

        Args:
          shapes: shapes of layers; the smallest sets the size from which an array counts. By default a layer
            is the last two axes of the compressed leaf that the array is made of. Of a sharded program the
            arrays have the shard's size.

        Raises:
          ValueError: no program, since it does not fit.
        """
        if self.module is None:
            raise ValueError(f"{self.topology}: no program to read, it does not fit: {self.message}")
        least = None if shapes is None else min(map(math.prod, shapes))
        arguments = [(path, leaf) for path, leaf in self.leaves.items() for _ in jax.tree.leaves(leaf)]
        coded = {path: leaf.shape for path, leaf in self.leaves.items() if _coded(leaf)}
        layers = {path: least or math.prod(shape[-2:]) for path, shape in coded.items()}
        smallest = least or min(layers.values(), default=math.inf)
        copies = []
        for w in written(self.module, range(len(arguments))):
            made_of = dict(arguments[n] for n in w.sources)
            beyond = max(math.prod(leaf.shape) for leaf in made_of.values()) + 1
            bounds = [layers[path] for path in made_of if path in layers] or [max(smallest, beyond)]
            if w.array.size >= min(bounds):
                size = (w.array.size * w.array.bits + 7) // 8
                place = (w.array.dtype, w.array.shape, size, w.array.on_chip)
                copies.append(WeightCopy(tuple(made_of), w.name, w.opcode, w.op_name, *place))
        return copies

    def float_copies(self, shapes: Iterable[Sequence[int]] | None = None) -> list[WeightCopy]:
        """The float arrays among ``weight_copies``: dequantized copies of a layer that the program writes."""
        return [c for c in self.weight_copies(shapes) if c.dtype.startswith(("f", "bf"))]


def compile_for(
    apply: Callable[..., PyTree],
    variables: PyTree,
    inputs: Sequence[PyTree],
    topology: str = "v5e:2x2",
    *,
    hbm_bytes: int | None = None,
) -> Compiled:
    """Compiles ``apply(variables, *inputs)`` ahead of time; nothing is run.

    Leaves whose ``NamedSharding`` is over devices of the topology (see ``devices``) keep it, and all others
    are then replicated on its mesh; without such leaves the program is for one device. JAX may be used on
    this machine's own backend before and after. ``JAX_PLATFORMS=cpu``, set before JAX is imported, keeps
    libtpu from complaining that there is no TPU.

    Args:
      variables, inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``, compressed tensors included.
      topology: ``"local"`` for the default backend, or a TPU's generation and layout, as ``"v4:2x2x1"``.
      hbm_bytes: memory of a device, instead of the generation's.

    Raises:
      ValueError: an unknown topology.
      RuntimeError: the TPU compiler is not installed.

    Example:
      >>> v = {"kernel": jax.ShapeDtypeStruct((64, 64), "float32")}
      >>> compiled = jn.compile_for(lambda v, x: x @ v["kernel"], v, (jax.ShapeDtypeStruct((8, 64), "float32"),), "local")
      >>> compiled.argument_bytes, compiled.output_bytes  # 4 bytes for each of 64 * 64 + 8 * 64 numbers, and of 8 * 64
      (18432, 2048)
    """
    targets = devices(topology)
    known = _memory(topology, targets[0]) if hbm_bytes is None else hbm_bytes
    arguments = _placed((variables, tuple(inputs)), targets)
    lowered = jax.jit(apply, keep_unused=True).lower(arguments[0], *arguments[1])
    leaves = leaves_by_path(arguments[0])
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if found is None:
            raise
        total = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
        sizes = (nbytes(arguments), nbytes(lowered.out_info))
        temp = max(0, total - sum(sizes))
        return Compiled(topology, *sizes, temp, 0, known, False, str(error), "", leaves)
    stats = memory_analysis(program)
    compiled = Compiled(
        topology, stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes, known, True, "", program.as_text() or "", leaves,
    )  # fmt: skip
    return dataclasses.replace(compiled, fits=known is None or compiled.total_bytes <= known)


@functools.cache
def devices(topology: str) -> tuple[jax.Device, ...]:
    """The devices of a topology, for a mesh: the default backend's for ``"local"``, else for compiling only.

    Raises:
      ValueError: an unknown topology.
      RuntimeError: the TPU compiler is not installed.
    """
    local = jax.devices()  # first, so that this machine's backend has started before libtpu is told of a TPU
    if topology == "local":
        return tuple(local)
    generation, _, layout = topology.partition(":")
    names = ", ".join(repr(f"{name}:{shape}") for name, (shape, _) in GENERATIONS.items())
    known = f"allowed are 'local', {names} and larger layouts of these generations"
    if generation not in GENERATIONS or not layout:
        raise ValueError(f"topology={topology!r}: {known}")
    if local[0].platform != "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise RuntimeError(f"topology={topology!r} needs the TPU compiler: pip install 'jaxopt_nn[tpu]'")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        return tuple(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology={topology!r}: {known}; the compiler says: {error}") from error


def _memory(topology: str, device: jax.Device) -> int | None:
    if topology == "local":
        return (device.memory_stats() or {}).get("bytes_limit")
    return GENERATIONS[topology.partition(":")[0]][1] * GIB


def _placed(tree: PyTree, targets: Sequence[jax.Device]) -> PyTree:
    """The tree's abstract leaves, each with a sharding over the targets."""

    def given(x: Any) -> NamedSharding | None:
        sharding = getattr(x, "sharding", None)
        inside = isinstance(sharding, NamedSharding) and sharding.device_set <= set(targets)
        return sharding if inside else None

    meshes = [s.mesh for s in map(given, jax.tree.leaves(tree)) if s is not None]
    default = NamedSharding(meshes[0], PartitionSpec()) if meshes else SingleDeviceSharding(targets[0])

    def place(x: Any) -> jax.ShapeDtypeStruct:
        abstract = x if hasattr(x, "dtype") else jax.eval_shape(lambda: x)
        where, weak = given(x) or default, getattr(abstract, "weak_type", False)
        return jax.ShapeDtypeStruct(abstract.shape, abstract.dtype, sharding=where, weak_type=weak)

    return jax.tree.map(place, tree)


def _coded(leaf: Any) -> bool:
    return len(leaf.shape) > 1 and (is_compressed(leaf) or jnp.issubdtype(leaf.dtype, jnp.integer))
