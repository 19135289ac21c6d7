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
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxopt_nn.core.paths import leaves_by_path
from jaxopt_nn.cost import hlo
from jaxopt_nn.tensors.base import is_compressed, nbytes

PyTree = Any
GIB = 2**30

#: Generation -> (the layout of one host, GiB of memory of one device), after the pages "TPU v4", "TPU v5e", ... of Google
#: Cloud's "TPU system architecture". A v4 chip has 32 GiB and two cores; ahead of time each core is a device with half.
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
      on_chip: written to on-chip memory (VMEM), not to HBM.
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
        made = ", ".join(self.paths)
        return f"{made}: %{self.instruction} ({self.opcode}) writes {self.dtype}[{shape}] {where}, from {self.op_name!r}"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program; all bytes are of one device.

    Attributes:
      topology: what it is compiled for.
      argument_bytes: all arguments, at the width and padding that the backend stores them; unused ones are included.
      output_bytes, temp_bytes, code_bytes: the results, the temporaries in HBM (not those on chip), the program.
      hbm_bytes: memory of one device, None where unknown.
      fits: whether the compiler found room for it, and ``total_bytes`` is at most ``hbm_bytes``.
      message: the compiler's words where it found no room, else ``""``. Then argument and output bytes are those of the
        arrays, ``temp_bytes`` is what is left of the total that the compiler names (rounded to 1 %), and ``hlo`` is empty.
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
    def module(self) -> hlo.Module | None:
        """The parsed program, None where there is none."""
        return hlo.parse(self.hlo) if self.hlo else None

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's estimate, see ``hlo.estimated_cycles``; None on backends that give none."""
        return hlo.estimated_cycles(self.module) if self.module else None

    def weight_copies(self, shapes: Iterable[Sequence[int]] | None = None) -> list[WeightCopy]:
        """The arrays of at least a layer's size, of any dtype, that are made of ``variables`` alone and written to memory.

        Looked for are copies of compressed weights: of compressed tensors and of integer leaves with two axes or more. Of
        other leaves (scales) only what is larger than the leaf counts. An array that depends on the inputs too, be it by an
        index (a lookup in an embedding), is an activation.

        Args:
          shapes: shapes of layers; the smallest sets the size from which an array counts. By default a layer is the last
            two axes of the compressed leaf that the array is made of. In a sharded program arrays have the shard's size.

        Raises:
          ValueError: no program, since it does not fit.
        """
        if self.module is None:
            raise ValueError(f"{self.topology}: no program to read, it does not fit: {self.message}")
        least = None if shapes is None else min(map(math.prod, shapes))
        arguments = [(path, leaf) for path, leaf in self.leaves.items() for _ in jax.tree.leaves(leaf)]
        layers = {path: least or math.prod(leaf.shape[-2:]) for path, leaf in self.leaves.items() if _coded(leaf)}
        smallest = least or min(layers.values(), default=math.inf)
        copies = []
        for w in hlo.written(self.module, range(len(arguments))):
            made_of = dict(arguments[n] for n in w.sources)
            coded = [layers[path] for path in made_of if path in layers]
            beyond = max(math.prod(leaf.shape) for leaf in made_of.values()) + 1
            if w.array.size >= (min(coded) if coded else max(smallest, beyond)):
                size = (w.array.size * w.array.bits + 7) // 8
                place = (w.array.dtype, w.array.shape, size, w.array.space == 1)
                copies.append(WeightCopy(tuple(made_of), w.name, w.opcode, w.op_name, *place))
        return copies

    def float_copies(self, shapes: Iterable[Sequence[int]] | None = None) -> list[WeightCopy]:
        """The float arrays among ``weight_copies``: each is a dequantized copy of a layer that the program writes."""
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

    Leaves whose ``NamedSharding`` is over devices of the topology (see ``devices``) keep it, and all others are then
    replicated on its mesh; without such leaves the program is for one device. Import and use JAX on this machine's own
    backend as usual before or after. On a machine without a TPU set ``JAX_PLATFORMS=cpu`` before JAX is imported to keep
    it quiet.

    Args:
      variables, inputs: pytrees of arrays or ``jax.ShapeDtypeStruct``, compressed tensors included.
      topology: ``"local"`` for the default backend, or a TPU's generation and layout: ``"v5e:2x2"``, ``"v4:2x2x1"``, ....
      hbm_bytes: memory of a device, instead of the generation's.

    Raises:
      ValueError: an unknown topology. RuntimeError: the TPU compiler is not installed.
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
    stats = program.memory_analysis()
    compiled = Compiled(
        topology, stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes, known, True, "", program.as_text(), leaves,
    )  # fmt: skip
    return dataclasses.replace(compiled, fits=known is None or compiled.total_bytes <= known)


@functools.cache
def devices(topology: str) -> Sequence[jax.Device]:
    """The devices of a topology, for a mesh: those of the default backend for ``"local"``, else such as only compile.

    Raises:
      ValueError: an unknown topology. RuntimeError: the TPU compiler is not installed.
    """
    local = jax.devices()  # first, so that this machine's backend has started before libtpu is told of a TPU
    if topology == "local":
        return local
    generation, _, layout = topology.partition(":")
    known = ", ".join(repr(f"{name}:{shape}") for name, (shape, _) in GENERATIONS.items())
    if generation not in GENERATIONS or not layout:
        raise ValueError(f"topology={topology!r}: allowed are 'local', {known} and other layouts of these generations")
    if local[0].platform != "tpu":
        if importlib.util.find_spec("libtpu") is None:
            raise RuntimeError(f"topology={topology!r} needs the TPU compiler: pip install 'jaxopt_nn[tpu]'")
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology={topology!r}: {error}; allowed are 'local', {known} and multiples of them") from error


def _memory(topology: str, device: jax.Device) -> int | None:
    if topology == "local":
        return (device.memory_stats() or {}).get("bytes_limit")
    return GENERATIONS[topology.partition(":")[0]][1] * GIB


def _placed(tree: PyTree, targets: Sequence[jax.Device]) -> PyTree:
    """The tree's abstract leaves, each with a sharding over the targets."""
    own = {id(d) for d in targets}

    def given(x: Any) -> Sharding | None:
        sharding = getattr(x, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding if all(id(d) in own for d in sharding.mesh.devices.flat) else None
        return None

    meshes = [s.mesh for s in map(given, jax.tree.leaves(tree)) if s is not None]
    default = NamedSharding(meshes[0], PartitionSpec()) if meshes else SingleDeviceSharding(targets[0])

    def place(x: Any) -> jax.ShapeDtypeStruct:
        abstract = jax.eval_shape(lambda: x) if not hasattr(x, "dtype") else x
        return jax.ShapeDtypeStruct(abstract.shape, abstract.dtype, sharding=given(x) or default)

    return jax.tree.map(place, tree)


def _coded(leaf: Any) -> bool:
    return len(leaf.shape) > 1 and (is_compressed(leaf) or jnp.issubdtype(leaf.dtype, jnp.integer))
