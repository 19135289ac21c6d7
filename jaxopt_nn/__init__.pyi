"""Every public name and where it is defined: ``__init__.py`` imports it from there at first use, type checkers read it."""

from .coding import entropy
from .coding.artifact import load_artifact, save_artifact
from .coding.compressed_tensors import from_compressed_tensors, to_compressed_tensors
from .coding.loader import load_file
from .coding.msgpack import from_msgpack, to_msgpack
from .coding.orbax import from_orbax, to_orbax
from .coding.safetensors import from_safetensors, to_safetensors
from .coding.writer import save_file
from .core.combine import by_path, chain, where
from .core.gates import between, every, frozen, later
from .core.leafwise import leafwise
from .core.matrix import Matrix
from .core.model import AxisGroup, Known, Member, ModelInfo, Rebuild, Roles, Site
from .core.passes import Pass, Plan, Width
from .core.remap import Remap
from .core.report import Message, Report
from .core.residual import residual
from .core.rule import Rule, identity_rule, rule_factory
from .core.tap import LayerTap, Probe, Tap
from .core.train import TrainState, init_train_state, make_step
from .core.transform import Facts, LeafTraits, State, Traits, Transform, explain, identity
from .cost.aot import compile_for
from .export.exported import exported
from .export.imported import imported
from .formulations.prepare import prepare
from .frameworks.linen import linen
from .frameworks.nnx import nnx
from .interpret.constants import keep_constants
from .interpret.groups import axis_groups
from .interpret.inspect import inspect
from .interpret.network import Network
from .interpret.pins import CouplingReport, Pin, coupling_report
from .interpret.rewrite import capture, rewrite
from .methods.allocations.by_sensitivity import by_sensitivity
from .methods.allocations.erk import erk
from .methods.allocations.global_budget import global_budget
from .methods.allocations.lamp import lamp
from .methods.allocations.per_leaf import per_leaf
from .methods.allocations.per_output import per_output
from .methods.arithmetic import arithmetic, fake_quant_activations
from .methods.binary import binarize
from .methods.clip import clip, clip_percentile, clip_std, clipping
from .methods.cluster import cluster
from .methods.cluster_vectors import cluster_vectors
from .methods.criteria.base import Memory
from .methods.criteria.fisher import fisher, obd
from .methods.criteria.magnitude import energy, magnitude
from .methods.criteria.movement import movement
from .methods.criteria.random import random_scores
from .methods.criteria.saliency import saliency
from .methods.criteria.snip import grasp, snip
from .methods.criteria.synflow import synflow
from .methods.criteria.wanda import ria, wanda
from .methods.learnt_threshold import learnt_threshold
from .methods.low_rank import low_rank
from .methods.prune import prune
from .methods.quantize import quantize
from .methods.ranges import moving_ranges, static_ranges
from .methods.rate_quantization import rate_quantize
from .methods.regrowth import Regrowth, rigl, sparse_evolution
from .methods.schedules import cubic, staircase
from .methods.sparsegpt import obs, sparsegpt
from .methods.structures.base import Structure, single_weights
from .methods.structures.blocks import blocks
from .methods.structures.n_of_m import n_of_m
from .methods.taps import abs_max, activity, gram, histogram, minmax, moments, square_sum
from .methods.ternary import ternarize
from .methods.transfer import transfer_weights
from .methods.unit_masks import mask_units
from .methods.xnor import xnor
from .parallel.infer import predictor
from .parallel.shardings import Shardings, shardings
from .passes import scores
from .passes.activity import unit_activity
from .passes.allocations import across_layers, per_layer
from .passes.cut_layers import cut_layers
from .passes.cut_units import cut_units
from .passes.cutting import planned
from .passes.masking import prune_neurons
from .passes.plans import dead_units, weak_units
from .passes.units import Units
from .pipeline import metrics
from .pipeline.attention import attention_weights
from .pipeline.calibrate import calibrate, calibrated
from .pipeline.checkpoints import Checkpoints
from .pipeline.classes import classification, language_model, multilabel
from .pipeline.compress import compress
from .pipeline.compress_to import Trial, compress_to
from .pipeline.data import Arrays, Stream
from .pipeline.distill import distillation_loss
from .pipeline.grade import evaluate
from .pipeline.metrics import Metric
from .pipeline.numbers import reconstruction, regression
from .pipeline.recipe import Calibration, Distill, Stage, control
from .pipeline.store import load, save
from .pipeline.task import Task
from .reporting.drawing import draw_groups
from .tensors.base import CompressedTensor, densify, is_compressed, nbytes
from .tensors.binary import Binary
from .tensors.codebook import Codebook
from .tensors.low_rank import LowRank
from .tensors.masked import Masked
from .tensors.n_of_m import NofM
from .tensors.qtensor import QTensor
from .tensors.sum import Sum
from .tensors.vector_codebook import VectorCodebook

__version__: str

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
