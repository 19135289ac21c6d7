"""The same chain of layers in OpenVINO and ONNX Runtime, for ``formulations.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Run = Callable[[np.ndarray], Any]


def chains(weights: Sequence[np.ndarray], group: int) -> dict[str, Run]:
    """Name -> function of ``[B, I]`` float32: layers ``[I, O]`` with ReLU, in float, 8 bits and 4 bits in groups.

    A peer that is not installed is left out with a printed line.
    """
    found: dict[str, Run] = {}
    with _if_installed("OpenVINO"):
        found |= dict(_openvino(weights, group))
    with _if_installed("ONNX Runtime"):
        found |= dict(_onnxruntime(weights, group))
    return found


@contextlib.contextmanager
def _if_installed(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        print(f"{name} is left out: {error}; pip install 'jaxopt_nn[bench]'")


def _codes(weight: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric codes ``[O, groups, entries]`` and scales ``[O, groups, 1]`` of a weight ``[I, O]``."""
    rows = np.ascontiguousarray(weight.T).reshape(weight.shape[1], -1, group)
    scale = np.abs(rows).max(2, keepdims=True) / (2 ** (bits - 1) - 1)
    return np.round(rows / scale).astype(np.int8), scale.astype(np.float32)


def _openvino(weights: Sequence[np.ndarray], group: int) -> Iterator[tuple[str, Run]]:
    import openvino as ov
    from openvino import opset13 as ops

    def layer(x: Any, weight: np.ndarray, bits: int) -> Any:
        if bits == 32:
            return ops.matmul(x, ops.constant(weight), False, False)
        inputs = weight.shape[0]
        codes, scale = _codes(weight, bits, inputs if bits == 8 else group)
        if bits == 8:
            codes, scale = codes[:, 0], scale[:, 0]
        if bits == 4:
            packed = _nibbles(codes)
            codes = ov.Tensor(packed, ov.Shape(codes.shape), ov.Type.i4)
            kept.extend([packed, codes])  # the compiled model does not own them
        held = ov.op.Constant(codes) if bits == 4 else ops.constant(codes)
        value = ops.multiply(ops.convert(held, "f32"), ops.constant(scale))
        flat = ops.constant(np.array([weight.shape[1], inputs]))
        return ops.matmul(x, value if bits == 8 else ops.reshape(value, flat, False), False, True)

    core, kept = ov.Core(), list[Any]()
    for bits, name in ((32, "float"), (8, "w8"), (4, "w4")):
        x = start = ops.parameter([-1, weights[0].shape[0]], np.float32)
        for weight in weights:
            x = ops.relu(layer(x, weight, bits))
        compiled = core.compile_model(ov.Model([x], [start]), "CPU", {"PERFORMANCE_HINT": "LATENCY"})
        yield f"OpenVINO {name}", lambda x, run=compiled, held=kept: run(x)[0]


def _nibbles(codes: np.ndarray) -> np.ndarray:
    flat = codes.reshape(-1).astype(np.uint8) & 15
    return flat[::2] | flat[1::2] << 4


def _onnxruntime(weights: Sequence[np.ndarray], group: int) -> Iterator[tuple[str, Run]]:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def model(bits: int) -> bytes:
        nodes, held, at = [], [], "x"
        keep = lambda name, array: held.append(numpy_helper.from_array(array, name)) or name
        for i, weight in enumerate(weights):
            inputs, outputs = weight.shape
            if bits == 32:
                nodes.append(helper.make_node("MatMul", [at, keep(f"w{i}", weight)], [f"y{i}"]))
            elif bits == 8:
                codes, scale = _codes(weight, 8, inputs)
                q = [f"{n}{i}" for n in ("a", "s", "z", "t", "f", "m")]
                nodes += [
                    helper.make_node("DynamicQuantizeLinear", [at], q[:3]),
                    helper.make_node("MatMulInteger", [q[0], keep(f"w{i}", codes[:, 0].T.copy()), q[2]], [q[3]]),
                    helper.make_node("Cast", [q[3]], [q[4]], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [q[1], keep(f"k{i}", scale.reshape(-1))], [q[5]]),
                    helper.make_node("Mul", [q[4], q[5]], [f"y{i}"]),
                ]
            else:
                codes, scale = _codes(weight, 4, group)
                blocks = _nibbles(codes + 8).reshape(outputs, inputs // group, group // 2)
                given = [at, keep(f"w{i}", blocks), keep(f"k{i}", scale.reshape(-1))]
                how = {"K": inputs, "N": outputs, "bits": 4, "block_size": group, "accuracy_level": 4}
                nodes.append(helper.make_node("MatMulNBits", given, [f"y{i}"], domain="com.microsoft", **how))
            nodes.append(helper.make_node("Relu", [f"y{i}"], [at := f"x{i}"]))
        value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", weights[0].shape[0]])
        graph = helper.make_graph(nodes, "chain", [value("x")], [value(at)], held)
        versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()

    for bits, name in ((32, "float"), (8, "w8a8"), (4, "w4a8")):
        session = onnxruntime.InferenceSession(model(bits), providers=["CPUExecutionProvider"])
        yield f"ONNX Runtime {name}", lambda x, run=session.run: run(None, {"x": x})[0]
