"""jaxopt_nn: makes trained JAX networks smaller and faster, and says what it cost."""

from jaxopt_nn.coding import entropy
from jaxopt_nn.coding.artifact import load_artifact, save_artifact
from jaxopt_nn.coding.compressed_tensors import from_compressed_tensors, to_compressed_tensors
from jaxopt_nn.coding.loader import load_file
from jaxopt_nn.coding.msgpack import from_msgpack, to_msgpack
from jaxopt_nn.coding.orbax import from_orbax, to_orbax
from jaxopt_nn.coding.safetensors import from_safetensors, to_safetensors
from jaxopt_nn.coding.writer import save_file
from jaxopt_nn.core.combine import by_path, chain, where
from jaxopt_nn.core.gates import between, every, frozen, later
from jaxopt_nn.core.leafwise import leafwise
from jaxopt_nn.core.matrix import Matrix
from jaxopt_nn.core.model import AxisGroup, Known, Member, ModelInfo, Rebuild, Roles, Site
from jaxopt_nn.core.passes import Pass, Plan, Width
from jaxopt_nn.core.remap import Remap
from jaxopt_nn.core.report import Message, Report
from jaxopt_nn.core.residual import residual
from jaxopt_nn.core.rule import Rule, identity_rule, rule_factory
from jaxopt_nn.core.tap import LayerTap, Probe, Tap
from jaxopt_nn.core.train import TrainState, init_train_state, make_step
from jaxopt_nn.core.transform import Facts, LeafTraits, State, Traits, Transform, explain, identity
from jaxopt_nn.cost.aot import compile_for
from jaxopt_nn.export.exported import exported
from jaxopt_nn.export.imported import imported
from jaxopt_nn.formulations.prepare import prepare
from jaxopt_nn.frameworks.linen import linen
from jaxopt_nn.frameworks.nnx import nnx
from jaxopt_nn.interpret.constants import keep_constants
from jaxopt_nn.interpret.groups import axis_groups
from jaxopt_nn.interpret.inspect import inspect
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.interpret.pins import CouplingReport, Pin, coupling_report
from jaxopt_nn.interpret.rewrite import capture, rewrite
from jaxopt_nn.methods.allocations.by_sensitivity import by_sensitivity
from jaxopt_nn.methods.allocations.erk import erk
from jaxopt_nn.methods.allocations.global_budget import global_budget
from jaxopt_nn.methods.allocations.lamp import lamp
from jaxopt_nn.methods.allocations.per_leaf import per_leaf
from jaxopt_nn.methods.allocations.per_output import per_output
from jaxopt_nn.methods.arithmetic import arithmetic, fake_quant_activations
from jaxopt_nn.methods.binary import binarize
from jaxopt_nn.methods.clip import clip, clip_percentile, clip_std, clipping
from jaxopt_nn.methods.cluster import cluster
from jaxopt_nn.methods.cluster_vectors import cluster_vectors
from jaxopt_nn.methods.criteria.base import Memory
from jaxopt_nn.methods.criteria.fisher import fisher, obd
from jaxopt_nn.methods.criteria.magnitude import energy, magnitude
from jaxopt_nn.methods.criteria.movement import movement
from jaxopt_nn.methods.criteria.random import random_scores
from jaxopt_nn.methods.criteria.saliency import saliency
from jaxopt_nn.methods.criteria.snip import grasp, snip
from jaxopt_nn.methods.criteria.synflow import synflow
from jaxopt_nn.methods.criteria.wanda import ria, wanda
from jaxopt_nn.methods.learnt_threshold import learnt_threshold
from jaxopt_nn.methods.low_rank import low_rank
from jaxopt_nn.methods.prune import prune
from jaxopt_nn.methods.quantize import quantize
from jaxopt_nn.methods.ranges import moving_ranges, static_ranges
from jaxopt_nn.methods.rate_quantization import rate_quantize
from jaxopt_nn.methods.regrowth import Regrowth, rigl, sparse_evolution
from jaxopt_nn.methods.schedules import cubic, staircase
from jaxopt_nn.methods.sparsegpt import obs, sparsegpt
from jaxopt_nn.methods.structures.base import Structure, single_weights
from jaxopt_nn.methods.structures.blocks import blocks
from jaxopt_nn.methods.structures.n_of_m import n_of_m
from jaxopt_nn.methods.taps import abs_max, activity, gram, histogram, minmax, moments, square_sum
from jaxopt_nn.methods.ternary import ternarize
from jaxopt_nn.methods.transfer import transfer_weights
from jaxopt_nn.methods.unit_masks import mask_units
from jaxopt_nn.methods.xnor import xnor
from jaxopt_nn.parallel.infer import predictor
from jaxopt_nn.parallel.shardings import Shardings, shardings
from jaxopt_nn.passes import scores
from jaxopt_nn.passes.activity import unit_activity
from jaxopt_nn.passes.allocations import across_layers, per_layer
from jaxopt_nn.passes.cut_layers import cut_layers
from jaxopt_nn.passes.cut_units import cut_units
from jaxopt_nn.passes.cutting import planned
from jaxopt_nn.passes.masking import prune_neurons
from jaxopt_nn.passes.plans import dead_units, weak_units
from jaxopt_nn.passes.units import Units
from jaxopt_nn.pipeline import metrics
from jaxopt_nn.pipeline.attention import attention_weights
from jaxopt_nn.pipeline.calibrate import calibrate, calibrated
from jaxopt_nn.pipeline.checkpoints import Checkpoints
from jaxopt_nn.pipeline.classes import classification, language_model, multilabel
from jaxopt_nn.pipeline.compress import compress
from jaxopt_nn.pipeline.compress_to import Trial, compress_to
from jaxopt_nn.pipeline.data import Arrays, Stream
from jaxopt_nn.pipeline.distill import distillation_loss
from jaxopt_nn.pipeline.grade import evaluate
from jaxopt_nn.pipeline.metrics import Metric
from jaxopt_nn.pipeline.numbers import reconstruction, regression
from jaxopt_nn.pipeline.recipe import Calibration, Distill, Stage, control
from jaxopt_nn.pipeline.store import load, save
from jaxopt_nn.pipeline.task import Task
from jaxopt_nn.reporting.drawing import draw_groups
from jaxopt_nn.tensors.base import CompressedTensor, densify, is_compressed, nbytes
from jaxopt_nn.tensors.binary import Binary
from jaxopt_nn.tensors.codebook import Codebook
from jaxopt_nn.tensors.low_rank import LowRank
from jaxopt_nn.tensors.masked import Masked
from jaxopt_nn.tensors.n_of_m import NofM
from jaxopt_nn.tensors.qtensor import QTensor
from jaxopt_nn.tensors.sum import Sum
from jaxopt_nn.tensors.vector_codebook import VectorCodebook

__version__ = "0.1.0"

__all__ = [
    "Arrays",
    "AxisGroup",
    "Binary",
    "Calibration",
    "Checkpoints",
    "Codebook",
    "CompressedTensor",
    "CouplingReport",
    "Distill",
    "Facts",
    "Known",
    "LayerTap",
    "LeafTraits",
    "LowRank",
    "Masked",
    "Matrix",
    "Member",
    "Memory",
    "Message",
    "Metric",
    "ModelInfo",
    "Network",
    "NofM",
    "Pass",
    "Pin",
    "Plan",
    "Probe",
    "QTensor",
    "Rebuild",
    "Regrowth",
    "Remap",
    "Report",
    "Roles",
    "Rule",
    "Shardings",
    "Site",
    "Stage",
    "State",
    "Stream",
    "Structure",
    "Sum",
    "Tap",
    "Task",
    "TrainState",
    "Traits",
    "Transform",
    "Trial",
    "Units",
    "VectorCodebook",
    "Width",
    "abs_max",
    "across_layers",
    "activity",
    "arithmetic",
    "attention_weights",
    "axis_groups",
    "between",
    "binarize",
    "blocks",
    "by_path",
    "by_sensitivity",
    "calibrate",
    "calibrated",
    "capture",
    "chain",
    "classification",
    "clip",
    "clip_percentile",
    "clip_std",
    "clipping",
    "cluster",
    "cluster_vectors",
    "compile_for",
    "compress",
    "compress_to",
    "control",
    "coupling_report",
    "cubic",
    "cut_layers",
    "cut_units",
    "dead_units",
    "densify",
    "distillation_loss",
    "draw_groups",
    "energy",
    "entropy",
    "erk",
    "evaluate",
    "every",
    "explain",
    "exported",
    "fake_quant_activations",
    "fisher",
    "from_compressed_tensors",
    "from_msgpack",
    "from_orbax",
    "from_safetensors",
    "frozen",
    "global_budget",
    "gram",
    "grasp",
    "histogram",
    "identity",
    "identity_rule",
    "imported",
    "init_train_state",
    "inspect",
    "is_compressed",
    "keep_constants",
    "lamp",
    "language_model",
    "later",
    "leafwise",
    "learnt_threshold",
    "linen",
    "load",
    "load_artifact",
    "load_file",
    "low_rank",
    "magnitude",
    "make_step",
    "mask_units",
    "metrics",
    "minmax",
    "moments",
    "movement",
    "moving_ranges",
    "multilabel",
    "n_of_m",
    "nbytes",
    "nnx",
    "obd",
    "obs",
    "per_layer",
    "per_leaf",
    "per_output",
    "planned",
    "predictor",
    "prepare",
    "prune",
    "prune_neurons",
    "quantize",
    "random_scores",
    "rate_quantize",
    "reconstruction",
    "regression",
    "residual",
    "rewrite",
    "ria",
    "rigl",
    "rule_factory",
    "saliency",
    "save",
    "save_artifact",
    "save_file",
    "scores",
    "shardings",
    "single_weights",
    "snip",
    "sparse_evolution",
    "sparsegpt",
    "square_sum",
    "staircase",
    "static_ranges",
    "synflow",
    "ternarize",
    "to_compressed_tensors",
    "to_msgpack",
    "to_orbax",
    "to_safetensors",
    "transfer_weights",
    "unit_activity",
    "wanda",
    "weak_units",
    "where",
    "xnor",
]
