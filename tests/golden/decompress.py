"""Decompresses a folder in the layout of ``compressed-tensors`` with the package itself, as a PyTorch model.

``python tests/golden/decompress.py FOLDER LAYERS`` writes ``FOLDER/decompressed.safetensors``; LAYERS is the JSON of
``{name: [class, shape of the weight]}``.
"""

import json
import pathlib
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from safetensors.torch import load_file, save_file


def add(model, name, layer):
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(model, parent):
            model.add_module(parent, torch.nn.Module())
        model = getattr(model, parent)
    model.add_module(last, layer)


def main(folder, layers):
    arrays, model = load_file(folder / "model.safetensors"), torch.nn.Module()
    for name, (kind, (rows, columns)) in layers.items():
        linear = kind == "Linear"
        bias = f"{name}.bias" in arrays
        add(model, name, torch.nn.Linear(columns, rows, bias=bias) if linear else torch.nn.Embedding(rows, columns))
    section = json.loads((folder / "config.json").read_text())["quantization_config"]
    compressor = ModelCompressor(quantization_config=QuantizationConfig(**section))
    apply_quantization_config(model, compressor.quantization_config)
    compressor.compress_model(model)  # lays the parameters out, for the arrays to fit
    missing, unexpected = model.load_state_dict(arrays, strict=False)
    assert not missing and unexpected == ["plain.scale"], (missing, unexpected)
    compressor.decompress_model(model)
    plain = {name: x.contiguous() for name, x in model.state_dict().items()}
    save_file(plain, folder / "decompressed.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]))
