"""Writes the files of ``tests/golden/compressed_tensors/`` with the package ``compressed-tensors`` itself.

In an environment of its own, since it brings PyTorch: ``pip install torch compressed-tensors``, then
``python tests/golden/write_compressed_tensors.py``. Written with compressed-tensors 0.20.1, torch 2.13.0.

Each folder has a small model as the package compresses it, and ``decompressed.safetensors``, what its decompressor gives.
"""

import json
import pathlib

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).parent / "compressed_tensors"


class Model(torch.nn.Module):
    """Linear layers by name, ``{name: (inputs, outputs)}``."""

    def __init__(self, sizes, dtype):
        super().__init__()
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(*size, dtype=dtype) for name, size in sizes.items()})
        self.head = torch.nn.Linear(8, 5, bias=False, dtype=dtype)


def weights(bits, symmetric=True, group=None):
    strategy = "channel" if group is None else "group"
    return {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "group_size": group}


def write(name, sizes, groups, dtype=torch.float32):
    """Compresses a model with weights drawn with seed 0, its scales from the smallest and largest weight of a group."""
    torch.manual_seed(0)
    model, folder = Model(sizes, dtype), FOLDER / name
    config = QuantizationConfig(config_groups=groups, ignore=["head"])
    apply_quantization_config(model, config)
    for layer in model.layers.values():
        rows = layer.weight.shape[0]
        groups_of = layer.weight.detach().float().reshape(rows, layer.weight_scale.shape[1], -1)
        scale, zero = calculate_qparams(groups_of.amin(-1), groups_of.amax(-1), layer.quantization_scheme.weights)
        layer.weight_scale.data.copy_(scale)
        if getattr(layer, "weight_zero_point", None) is not None:
            layer.weight_zero_point.data.copy_(zero)
        layer.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "golden"}))
    compressor.update_config(str(folder))
    compressor.decompress_model(model)
    plain = {name: x for name, x in model.state_dict().items() if name.endswith(("weight", "bias"))}
    save_file({name: x.contiguous() for name, x in plain.items()}, folder / "decompressed.safetensors")


if __name__ == "__main__":
    mixed = {
        "symmetric": {"targets": ["layers.up"], "weights": weights(4, group=32)},
        "asymmetric": {"targets": ["re:.*down"], "weights": weights(4, symmetric=False, group=16)},
        "eight": {"targets": ["layers.gate"], "weights": weights(8), "format": "int-quantized"},
        "packed": {"targets": ["layers.out"], "weights": weights(8, symmetric=False)},
    }
    write("mixed", {"up": (64, 10), "down": (48, 17), "gate": (21, 6), "out": (13, 9)}, mixed)
    write("linear", {"up": (70, 9)}, {"all": {"targets": ["Linear"], "weights": weights(4)}}, torch.bfloat16)
