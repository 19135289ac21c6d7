"""Every model is cut: what is left is the network with the cut units at zero, and so are its gradients."""

import zlib

import pytest

from tests.corpus import CORPUS, oracle
from tests.corpus.cutting import one, planned, shortened
from tests.zoo import FORWARD_ONLY, ZOO

MODELS = {**ZOO, **CORPUS}
#: Cheap ones, one for each of: rows, convolutions, states of a loop, a custom derivative, a collective.
FAST = ("mlp_relu", "lenet_transposed", "min_gru", "maxout", "shard_map")


#: Those that add to a value, layer by layer.
LAYERED = """
alibi conformer cross_network ddpm dropout_mha einsum_heads encdec encoder_decoder equinox_transformer film fused_qkv gmlp gpt
gpt_learned gpt_nn_scan gpt_scan gpt_sinusoidal gqa_repeat gqa_reshape gru_layers_scanned haiku_transformer linear_attention
llama llama_remat llama_scan llama_scan_remat mixer mlp_mixer multi_query nnx_jit nnx_remat nnx_scan parallel_block perceiver
qk_norm qkv_by_head qkv_reshape qkv_split residual_mlp resnet_post resnext resnext_groups rotary_complex rotary_half
rotary_interleaved rotary_partial swiglu swin swin_merging t5_bias vit vit_class_token vit_reshaped_patches vit_token wavenet
""".split()


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


def check(name: str, share: float) -> None:
    """Units of all groups at once, with gradients and, for a third of the models, on a larger batch; for another third no
    gradients, but a group alone too. Models with derivatives of their own have them compared."""
    model, seed = MODELS[name](), seed_of(name)
    plan, execute = planned(model, share, seed)
    cut = [layer.name for layer in plan.layers if layer.cut]
    alone = seed % 3 == 1 and len(cut) > 1 and not name.startswith("custom")
    oracle.check(model, plan, execute, gradients=not alone and name not in FORWARD_ONLY, larger=seed % 3 == 0)
    if alone:
        oracle.check(model, one(plan, cut[seed % len(cut)]), execute, gradients=False, larger=False)


@pytest.mark.parametrize("name", FAST)
def test_units_are_cut(name):
    check(name, 0.3)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_cut(name):
    check(name, 0.3 if seed_of(name) % 2 else 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("gqa_repeat", "rotary_interleaved", "lstm_fused", "shufflenet_v2"))
def test_each_group_alone(name):
    model = MODELS[name]()
    plan, execute = planned(model, 0.6, 1)
    for layer in plan.layers:
        if layer.cut:
            oracle.check(model, one(plan, layer.name), execute, gradients=False, larger=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERED)
def test_layers_go(name):
    """A layer whose weights are zero adds nothing: the network without it is the one with zeros."""
    model = MODELS[name]()
    plan, execute = shortened(model, 0.5, seed_of(name))
    assert any(layer.cut for layer in plan.layers)
    oracle.check(model, plan, execute, gradients=name not in FORWARD_ONLY, larger=seed_of(name) % 3 == 0)
