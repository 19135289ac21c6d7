"""Trees in the layout of ``compressed-tensors``, which vLLM and Transformers read, and back.

A folder with ``model.safetensors`` and a ``config.json`` whose ``quantization_config`` says how the weights are coded.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxopt_nn.coding import named, safetensors
from jaxopt_nn.coding.artifact import Artifact, directory_bytes
from jaxopt_nn.coding.linear import PARTS, WIDTHS, Layers, Linear, laid_out, refusal, restored
from jaxopt_nn.core.files import replacing
from jaxopt_nn.core.paths import leaves_by_path, map_with_path
from jaxopt_nn.tensors.base import PyTree, is_compressed

WEIGHTS, CONFIG, SECTION = "model.safetensors", "config.json", "quantization_config"
INDEX = f"{WEIGHTS}.index.json"
Names = Callable[[str, int | None], str]


def default_name(path: str, layer: int | None) -> str:
    """``params/block/query/kernel`` as ``block.query.weight``, its layer 3 as ``block.query.3.weight``; others with dots."""
    parts = path.removeprefix("params/").split("/")
    inner = [] if layer is None else [str(layer)]
    return ".".join([*parts[:-1], *inner, "weight"] if parts[-1] == "kernel" else [*parts, *inner])


def to_compressed_tensors(
    directory: str | os.PathLike[str],
    tree: PyTree,
    *,
    names: Names = default_name,
    others: str = "error",
    activations: int | None = None,
    config: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Writes a tree in the layout of the ``compressed-tensors`` package; ``from_compressed_tensors`` reads it.

    What fits are matrices with integer codes of 1, 2, 4 or 8 bits (``QTensor``), symmetric or with integer zero points, with
    scales for each output or for groups along the inputs; the scales say which axis has the inputs. 8 bits become
    ``int-quantized`` (``weight``, int8), fewer ``pack-quantized`` (``weight_packed``, int32 words). Weights lie as
    ``[out, in]``, floats under a path that ends in ``kernel`` too; ``[S, in, out]`` becomes S layers. Other arrays stay.

    Args:
      directory: made where it is missing; its parent must exist.
      tree: dicts, lists, tuples and None around arrays and compressed tensors: ``network.variables``, say.
      names: ``(path, layer) -> name of the weight``, ``"model.layers.3.mlp.up_proj.weight"``; layer is None where the weight
        is one matrix. Where a runtime is to load the files, these are the names that its own code has.
      others: what becomes of compressed tensors that do not fit: ``"error"``, or ``"dense"``: a mask over codes that fit is
        written as these codes, zeros among them, anything else as floats.
      activations: 8 says that layers of 8 bits get activations rounded to 8 bits, with a scale for each token.
      config: further entries of ``config.json``, such as the architecture.
      overwrite: replaces a model that stands there, its index and its shards too; other files stay.

    Returns:
      the folder; its ``dense`` says which leaves were written so, and why.

    Raises:
      FileExistsError: a model stands there and ``overwrite`` is False.
      ImportError: safetensors is not installed.
      ValueError: leaves that do not fit, each with the reason; a name that is not a weight's, or of two arrays; an argument
        that is not allowed.

    Example:
      >>> kernel = jn.QTensor.quantize(jnp.ones((64, 8)), scale=0.25 * jnp.ones((2, 8)), bits=4)
      >>> folder = jn.to_compressed_tensors("net", {"params": {"up": {"kernel": kernel}}})
      >>> sorted(file.name for file in folder.path.iterdir())
      ['config.json', 'model.safetensors']
    """
    if others not in ("error", "dense") or activations not in (None, 8):
        raise ValueError(
            f"to_compressed_tensors(others={others!r}, activations={activations!r}): others may be 'error' or 'dense', "
            "activations None or 8"
        )
    target = Path(directory).absolute()
    replaced = _replaced(target, overwrite)
    laid, dense = _laid(tree, others)
    leaves = dict(_layers(laid, names))
    header, arrays = named.encode(laid, _array_names(leaves, names))
    section = quantization_config({name: layer for _, name, layer in leaves.values()}, activations)
    target.mkdir(exist_ok=True)
    text = json.dumps({**(config or {}), SECTION: section}, indent=2, sort_keys=True)
    with replacing(target / CONFIG) as config_file, replacing(target / WEIGHTS) as weights_file:
        safetensors.write(weights_file, arrays, {named.HEADER: header, "format": "pt"})
        config_file.write_text(f"{text}\n")
        for file in replaced:  # before the two are renamed: no weights ever lie beside another model's config
            file.unlink(missing_ok=True)
    return Artifact(target, directory_bytes(target), dense)


def from_compressed_tensors(directory: str | os.PathLike[str]) -> PyTree:
    """The tree of a folder in the layout of ``compressed-tensors``, ours or another's.

    Args:
      directory: with ``config.json`` and ``model.safetensors``, or its shards and their index.

    Returns:
      What ``to_compressed_tensors`` wrote, equal to the bit where no leaf was made dense. Of another's files a nested dict
      by the names of its modules, integer weights as ``QTensor`` in the format's order, ``[out, in]``: turn one with
      ``tensor.transpose((1, 0))``.

    Raises:
      FileNotFoundError: no such folder or file.
      ImportError: safetensors is not installed.
      ValueError: no such layout, a damaged file, or weights of a kind that ``QTensor`` can't hold; named.

    Example:
      >>> kernel = jn.QTensor.quantize(jnp.ones((64, 8)), scale=0.25 * jnp.ones((2, 8)), bits=4)
      >>> folder = jn.to_compressed_tensors("net", {"params": {"up": {"kernel": kernel}}})
      >>> bool((jn.from_compressed_tensors(folder)["params"]["up"]["kernel"].codes == kernel.codes).all())
      True
    """
    source = Path(directory)
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such directory")
    files = _weight_files(source)
    read = [safetensors.read(file) for file in files]
    metadata = read[0][1]
    if len(read) == 1 and named.HEADER in metadata:
        return restored(named.decode(metadata[named.HEADER], read[0][0], str(files[0])))
    arrays = {name: value for each, _ in read for name, value in each.items()}
    return _foreign(arrays, _section(source), str(source))


def _laid(tree: PyTree, others: str) -> tuple[PyTree, dict[str, str]]:
    """The tree with its matrices laid out, and which leaves are dense, with the reason.

    Raises:
      ValueError: leaves that do not fit, unless ``others`` is ``"dense"``.
    """
    dense: dict[str, str] = {}
    for path, leaf in leaves_by_path(tree).items():
        if is_compressed(leaf) and (reason := refusal(leaf)) is not None:
            dense[path] = reason
    if dense and others == "error":
        listed = "\n".join(f"  {path}: {reason}" for path, reason in dense.items())
        raise ValueError(
            f"these leaves do not fit the compressed-tensors layout:\n{listed}\nPass others='dense' to write them without "
            "masks, or as floats; or use jaxopt_nn.to_safetensors, which keeps them as they are"
        )

    def laid(path: str, leaf: Any) -> Any:
        if path in dense:
            whole = leaf.coded()  # a mask over codes: zeros have a code
            leaf = whole if whole is not None and refusal(whole) is None else leaf.densify()
        if is_compressed(leaf):
            return laid_out(leaf)
        matrix = getattr(leaf, "ndim", 0) == 2 and path.split("/")[-1] == "kernel"
        return Linear(leaf.T, turned=True, float_dtype=leaf.dtype.name) if matrix else leaf

    return map_with_path(laid, tree), dense


def _layers(laid: PyTree, names: Names) -> Iterator[tuple[str, tuple[str, str, Linear]]]:
    """``(path inside the tree, (path of the leaf, name of the weight, layer))``."""
    for path, leaf in leaves_by_path(laid).items():
        if isinstance(leaf, Linear):
            yield path, (path, _weight_name(names(path, None), path, leaf, names), leaf)
        elif isinstance(leaf, Layers):
            for i, layer in enumerate(leaf.layers):
                yield f"{path}/layers/{i}", (path, _weight_name(names(path, i), path, layer, names), layer)


def _weight_name(name: str, path: str, layer: Linear, names: Names) -> str:
    if name.endswith(".weight"):
        return name
    if names is default_name:
        return f"{name}.weight"
    raise ValueError(f"{path}: names gave {name!r}; the name of a linear layer's weight ends in '.weight'")


def _array_names(leaves: Mapping[str, tuple[str, str, Linear]], names: Names) -> Callable[[str], str]:
    """``path of an array inside the laid-out tree -> its name in the file``."""

    def name(path: str) -> str:
        parent, _, part = path.rpartition("/")
        if part in PARTS and parent in leaves:
            return leaves[parent][1].removesuffix("weight") + part
        return names(path, None)

    return name


def quantization_config(layers: Mapping[str, Linear], activations: int | None = None) -> dict[str, Any]:
    """The section of ``config.json`` for layers by the names of their weights."""
    groups: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        if layer.bits is not None:
            scheme = _scheme(layer, activations)
            group = groups.setdefault(json.dumps(scheme, sort_keys=True), {**scheme, "targets": []})
            group["targets"].append(name.removesuffix(".weight"))
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision" if formats else "dense",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups.values())},
        "ignore": [name.removesuffix(".weight") for name, layer in layers.items() if layer.bits is None],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _scheme(layer: Linear, activations: int | None) -> dict[str, Any]:
    _, columns = layer.weight.shape if layer.weight_shape is None else map(int, layer.weight_shape)
    groups = layer.weight_scale.shape[1]
    strategy, size = ("channel", None) if groups == 1 else ("group", columns // groups)
    common = {"num_bits": layer.bits, "type": "int", "dynamic": False, "symmetric": layer.weight_zero_point is None}
    tokens = {"num_bits": 8, "type": "int", "dynamic": True, "symmetric": True, "strategy": "token", "group_size": None}
    return {
        "format": "int-quantized" if layer.weight_packed is None else "pack-quantized",
        "weights": {**common, "strategy": strategy, "group_size": size},
        "input_activations": tokens if activations == 8 and layer.bits == 8 else None,
        "output_activations": None,
    }


def _foreign(arrays: Mapping[str, np.ndarray], section: Mapping[str, Any], source: str) -> PyTree:
    """Another's arrays as a nested dict, its integer weights as ``QTensor``."""
    rest, weights = dict(arrays), {}
    for scale in [name for name in arrays if name.endswith(".weight_scale")]:
        module = scale.removesuffix(".weight_scale")
        parts = {part: rest.pop(f"{module}.{part}") for part in PARTS if f"{module}.{part}" in rest}
        extra = sorted(name for name in rest if name.startswith(f"{module}.weight_"))
        if extra:
            raise ValueError(f"{source}: {', '.join(extra)}: this version does not know that part of a weight")
        weights[f"{module}.weight"] = _read_layer(module, parts, section, source)
    tree = named.nested({**rest, **dict.fromkeys(weights, np.zeros(0))}, source, ".")
    return map_with_path(lambda path, x: weights.get(path.replace("/", "."), x), tree)


def _read_layer(module: str, parts: Mapping[str, np.ndarray], section: Mapping[str, Any], source: str) -> Any:
    """The ``QTensor`` of a module.

    Raises:
      ValueError: its parts are not those of integer codes with scales for each output or group.
    """
    scheme = scheme_of(module, section, source)
    packed, scale = parts.get("weight_packed"), parts["weight_scale"]
    kind, bits, strategy = scheme.get("type", "int"), scheme.get("num_bits"), scheme.get("strategy") or "channel"
    known = kind == "int" and bits in WIDTHS and strategy in ("tensor", "channel", "group")
    if not known or not _fitting(parts, bits or 0):
        shapes = ", ".join(f"{part} {x.dtype}{list(x.shape)}" for part, x in parts.items())
        raise ValueError(
            f"{source}: {module}: {bits} bits of {kind} by {strategy} ({shapes}); this version reads int codes of {WIDTHS} "
            "bits by tensor, channel or group"
        )
    scale = scale.reshape(1, 1) if scale.size == 1 else scale.reshape(len(scale), -1)
    zero = None if scheme.get("symmetric", True) else parts.get("weight_zero_point")
    if zero is not None and packed is None:
        zero = zero.reshape(scale.shape)
    layer = Linear(
        parts.get("weight"), packed, scale, zero, parts.get("weight_shape"), bits=bits, float_dtype=scale.dtype.name,
        has_zero=zero is not None,
    )  # fmt: skip
    try:
        return layer.tensor()
    except ValueError as error:
        raise ValueError(f"{source}: {module}: {error}") from error


def _fitting(parts: Mapping[str, np.ndarray], bits: int) -> bool:
    """Whether a module has codes, of the type and size that belong to their width."""
    if "weight_packed" not in parts:
        return "weight" in parts and parts["weight"].dtype == np.int8 and parts["weight"].ndim == 2 and bits == 8
    if "weight_shape" not in parts or parts["weight_shape"].shape != (2,):
        return False
    rows, columns = map(int, parts["weight_shape"])
    return parts["weight_packed"].dtype == np.int32 and parts["weight_packed"].shape == (rows, -(-columns * bits // 32))


def scheme_of(module: str, section: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """What the config says of a module's weights: by its name, a regular expression, or the class that all others have.

    Raises:
      ValueError: no group has the module, or the groups are malformed.
    """
    by_name = lambda t: t == module
    by_expression = lambda t: t.startswith("re:") and re.match(t[3:], module) is not None
    by_class = lambda t: "." not in t and t[:1].isupper()
    try:
        for fits in (by_name, by_expression, by_class):
            for group in section.get("config_groups", {}).values():
                if any(map(fits, group.get("targets", ()))) and group.get("weights"):
                    return dict(group["weights"])
    except (AttributeError, OverflowError, RecursionError, TypeError, ValueError, re.error) as error:
        message = f"{source}: {module}: config_groups of {SECTION} in {CONFIG} are malformed ({error!r})"
        raise ValueError(message) from error
    raise ValueError(f"{source}: {module}: no group of {SECTION} in {CONFIG} has it among its targets")


def _section(source: Path) -> dict[str, Any]:
    file = source / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the layout says there how weights are coded")
    try:
        section = json.loads(file.read_bytes()).get(SECTION)
    except (AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{file}: no JSON of a model ({error})") from error
    if not isinstance(section, dict) or section.get("quant_method") != "compressed-tensors":
        raise ValueError(f"{file}: has no {SECTION} of compressed-tensors; read {WEIGHTS} with jaxopt_nn.from_safetensors")
    return section


def _weight_files(source: Path) -> list[Path]:
    """The shards that the index lists, or the one file.

    Raises:
      ValueError: the index is malformed, lists nothing, or lists something else than safetensors files of its folder.
    """
    index = source / INDEX
    if not index.is_file():
        return [source / WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{index}: no index of shards ({error!r})") from error
    if outside or not names:
        listed = f"{outside[0]!r} among its shards" if outside else "no shards"
        raise ValueError(f"{index}: lists {listed}; allowed are names of safetensors files in the same folder")
    return [source / name for name in names]


def _replaced(target: Path, overwrite: bool) -> list[Path]:
    """The files of a model that stands in the folder.

    Raises:
      OSError: there is no folder to write to, or a model stands there and ``overwrite`` is False.
      ValueError: the model has an index that is none.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory; make it first")
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; pass the name of a folder")
    standing = [target / name for name in (WEIGHTS, CONFIG, INDEX) if (target / name).exists()]
    if standing and not overwrite:
        raise FileExistsError(f"{standing[0]} exists; pass overwrite=True, or another folder")
    # the weights themselves are replaced by renaming, so that they are never missing
    return [file for file in (target / CONFIG, target / INDEX, *_weight_files(target)) if file.name != WEIGHTS]
