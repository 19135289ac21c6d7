"""Recipes: what is done to a network, stage after stage."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxopt_nn.core.arguments import in_words, is_factory, require
from jaxopt_nn.core.passes import Pass
from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.train import averaging
from jaxopt_nn.core.transform import Transform, identity
from jaxopt_nn.interpret.cases import cases_of

if TYPE_CHECKING:
    import optax

#: What messages ask for as the transform of a stage.
WANTED = "a Transform, e.g. quantize(4), a Pass, e.g. cut_units(share=0.5), or a function of the number of training steps"

@dataclasses.dataclass(frozen=True)
class Distill:
    """Training towards a teacher's outputs (Hinton et al. 2015): ``h loss + (1 - h) soft``, of the task's two functions.

    Attributes:
      temperature: what ``Task.soft`` gets; for logits, as in ``pipeline.distill.distillation_loss``.
      hard_weight: ``h``, the share of the task's own loss; ``soft`` gets the rest. A loss that takes ``teacher`` itself mixes
        as it likes.

    Raises:
      ValueError: a temperature that is not positive, a weight outside [0, 1].

    Example:
      >>> stage = jn.Stage("student", jn.identity(), epochs=10, distill=jn.Distill(temperature=3.0, hard_weight=0.2))
      >>> stage.distill.temperature
      3.0
      >>> jn.Distill(temperature=0.0)
      Traceback (most recent call last):
          ...
      ValueError: Distill(temperature=0.0): a positive number, e.g. 4.0
    """

    temperature: float = 4.0
    hard_weight: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"Distill(temperature={self.temperature}): a positive number, e.g. 4.0")
        if not 0 <= self.hard_weight <= 1:
            raise ValueError(f"Distill(hard_weight={self.hard_weight}): a share from 0 to 1, e.g. 0.1")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How a stage's method sees the network on data (``calibrate``), where the training data as it is does not do.

    Attributes:
      weights: ``network -> weights``, how much each example or token counts: called with the network as the stage finds it,
        it gives what ``calibrate`` takes. ``attention_weights``, or ``partial(attention_weights, values="**/value/kernel")``.
        None: all alike.
      sequential: layer by layer, each on the inputs that the layers before it give once they are changed.

    Raises:
      TypeError: a field of another type.

    Example:
      >>> weighed = jn.Calibration(weights=jn.attention_weights, sequential=True)
      >>> stage = jn.Stage("sparse", jn.sparsegpt(0.5), calibration=weighed)
    """

    weights: Callable[[Any], Callable[..., Any]] | None = None
    sequential: bool = False

    def __post_init__(self) -> None:
        if not (self.weights is None or callable(self.weights)):
            raise TypeError(
                f"Calibration(weights={self.weights!r:.60}): pass a function of the network, e.g. attention_weights; only a "
                "config takes its name"
            )
        require(self.sequential, bool, "Calibration: sequential", "True or False")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: a transform joins those of the earlier stages, or a pass changes the network; then it is trained.

    Attributes:
      name: in reports; unique within a recipe.
      transform: what this stage adds; or a function of the stage's number of training steps that gives it, for schedules. Or a
        pass: what the transforms so far make of the weights is committed, the network is cut, and their states go with it.
      epochs: passes over the training data; 0 for none.
      learning_rate: Adam's, decayed to zero over the stage by half a cosine; or an optax schedule of the stage's step; or a
        function of the stage's number of training steps that gives one.
      optimizer: in Adam's place, any optax transformation, or a function of the stage's number of training steps that gives
        one; then ``learning_rate`` and ``weight_decay`` are its own.
      learnt_optimizer: likewise, of what methods and rules learn (steps, codebooks); None: that of the weights, without decay.
      weight_decay: decoupled from the gradient, times the learning rate (AdamW, Loshchilov and Hutter 2019); 0: plain Adam.
        Leaves without any gradient (running statistics) do not decay.
      ema: decay of an exponential moving average of all that is trained, e.g. 0.999; the stage ends with the average, while
        ``carried`` and the history are those of the training itself. With a constant learning rate it takes the place of a
        decayed one (Polyak and Juditsky 1992; Izmailov et al. 2018). 0: none.
      rule: what the deployed network's sites compute, e.g. ``arithmetic("w4a8")``, or ``(pattern, Rule)`` pairs over leaf paths
        and site names, first match wins; None evaluates the codes with float activations. Holds for this stage, not for later
        ones.
      thaw: names of earlier stages whose ``carried`` (masks, say) goes on changing, their schedules from where they were.
      rewind: name of an earlier stage: once the transform has started on the trained weights, all variables go back to what
        they were when that stage began, while masks and other states stay (Frankle & Carbin 2019; a few steps into the
        training, Frankle et al. 2020: make these a stage of their own, and rewind to the next). None: training goes on.
      training_rule: what the sites compute in training, e.g. ``fake_quant_activations(8)``, or ``identity_rule()`` for float;
        None: the twin of ``rule``, at the sites that ``rule`` takes.
      calibration: how the method, or the pass, sees the network on data, if it does; None: all examples and layers alike.
      distill: trains towards the teacher's outputs; None: towards the labels alone.
      gradient_norms: keeps each leaf's gradient norm in the history.

    Raises:
      ValueError: an empty name, negative epochs, a number outside the above.
      TypeError: a field of another type.

    Example:
      >>> recipe = [
      ...     jn.Stage("prune", lambda steps: jn.prune(sparsity=jn.cubic(0.9, end=steps - 1)), epochs=5),
      ...     jn.Stage("w4a8", jn.quantize(4), epochs=5, learning_rate=3e-4, rule=jn.arithmetic("w4a8")),
      ... ]
      >>> [stage.name for stage in recipe]
      ['prune', 'w4a8']
    """

    name: str
    transform: Transform | Pass | Callable[[int], Transform]
    epochs: int = 0
    learning_rate: float | Callable[[Any], Any] = 1e-3
    weight_decay: float = 0.0
    ema: float = 0.0
    optimizer: optax.GradientTransformation | Callable[[int], optax.GradientTransformation] | None = None
    learnt_optimizer: optax.GradientTransformation | Callable[[int], optax.GradientTransformation] | None = None
    rule: Rule | Sequence[tuple[str, Rule]] | None = None
    thaw: tuple[str, ...] = ()
    rewind: str | None = None
    training_rule: Rule | None = None
    calibration: Calibration | None = None
    distill: Distill | None = None
    gradient_norms: bool = False

    def __post_init__(self) -> None:
        require(self.name, str, "Stage: name", "a string first, then the transform: Stage('w4', quantize(4), epochs=1)")
        if not self.name or self.name.startswith(".") or "/" in self.name or "\\" in self.name:
            raise ValueError(f"Stage(name={self.name!r}): a stage needs a name that a folder can have")
        where = f"stage {self.name!r}"
        if is_factory(self.transform) or not callable(self.transform):
            require(self.transform, Transform | Pass, f"{where}: transform", WANTED)
        for field, kind, hint in (
            ("rule", Rule, "a Rule, e.g. arithmetic('w4a8')"),
            ("training_rule", Rule, "a Rule, e.g. fake_quant_activations(8)"),
            ("calibration", Calibration, "Calibration(sequential=True)"),
            ("distill", Distill, "Distill(temperature=4.0, hard_weight=0.1)"),
        ):
            if field == "rule" and isinstance(self.rule, Mapping | list | tuple) and not isinstance(self.rule, Rule):
                object.__setattr__(self, "rule", self.cases)
            elif getattr(self, field) is not None:
                require(getattr(self, field), kind, f"{where}: {field}", hint)
        if isinstance(self.thaw, str) or not all(isinstance(name, str) for name in self.thaw):
            raise TypeError(f"{where}: thaw={self.thaw!r:.60}; pass a tuple of names of earlier stages, e.g. ('prune',)")
        if not (self.rewind is None or isinstance(self.rewind, str)):
            raise TypeError(f"{where}: rewind={self.rewind!r:.60}; pass the name of an earlier stage, or None")
        if self.rewind is not None and isinstance(self.transform, Pass):
            raise ValueError(f"{where}: rewind={self.rewind!r} beside a pass, which cuts what it gets; rewind the next")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise ValueError(f"{where}: epochs={self.epochs!r}; allowed are the whole numbers from 0")
        for field in ("learning_rate", "weight_decay", "ema"):
            value = getattr(self, field)
            if not (isinstance(value, numbers.Real) or (field == "learning_rate" and callable(value))):
                raise TypeError(f"{where}: {field}={value!r}; pass a number")
        for field in ("optimizer", "learnt_optimizer"):
            value = getattr(self, field)
            if not (value is None or callable(value) or (hasattr(value, "init") and hasattr(value, "update"))):
                raise TypeError(f"{where}: {field}={value!r:.60}; pass an optax transformation, e.g. optax.sgd(0.1)")
        if self.optimizer is not None and self.weight_decay:
            raise ValueError(f"{where}: weight_decay={self.weight_decay} beside an optimizer; give the optimizer its own")
        if not callable(self.learning_rate) and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"{where}: learning_rate={self.learning_rate}; pass a positive number or an optax schedule")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"{where}: weight_decay={self.weight_decay}; a number from 0, e.g. 0.01")
        if not 0 <= self.ema < 1:
            raise ValueError(f"{where}: ema={self.ema}; a decay from 0 (no average) to below 1, e.g. 0.999")

    @property
    def cases(self) -> tuple[tuple[str, Rule], ...]:
        """``rule`` as a ``Network`` has them: ``(pattern, Rule)`` pairs."""
        return () if self.rule is None else tuple(cases_of(self.rule, Rule, f"stage {self.name!r}: rule"))

    def method(self, steps: int) -> Transform:
        """What this stage adds, trained for ``steps`` steps: nothing where it holds a pass.

        Raises:
          TypeError: the function of the number of steps gives something else.
        """
        if isinstance(self.transform, Transform | Pass):
            return self.transform if isinstance(self.transform, Transform) else identity()
        where = f"stage {self.name!r}: transform({steps})"
        try:
            made = self.transform(steps)
        except (AttributeError, LookupError, TypeError) as error:  # of a function of the weights, say
            raise TypeError(f"{where} fails, {type(error).__name__}: {error}; pass {WANTED}") from error
        return require(made, Transform, where, WANTED, "returned")

    def updates(self, steps: int) -> optax.GradientTransformation:
        """The optimizer over ``{"params", "learnt", "rules"}`` for so many steps, with an average if ``ema`` asks."""
        import optax

        made = _made(self.optimizer, steps)
        if made is None:
            rate = optax.scale_by_learning_rate(self._schedule(steps))
            decay = [optax.stateless(functools.partial(_decayed, self.weight_decay))] if self.weight_decay else []
            made = optax.chain(optax.scale_by_adam(), *decay, rate)
        if (own := _made(self.learnt_optimizer, steps)) is not None:
            made = optax.multi_transform({"weights": made, "learnt": own}, _labels)
        return averaging(made, self.ema) if self.ema else made

    def _schedule(self, steps: int) -> Callable[[Any], Any]:
        import optax

        rate = self.learning_rate
        if not callable(rate):
            return optax.cosine_decay_schedule(rate, max(steps, 1))
        made = rate(steps)
        return made if callable(made) else rate


def _made(given: Any, steps: int) -> Any:
    """A transformation, or what a function of the number of steps gives."""
    return given(max(steps, 1)) if callable(given) and not hasattr(given, "init") else given


def _labels(tree: Any) -> dict[str, str]:
    """Which optimizer moves what: what methods and rules learn is not weights."""
    return {part: "weights" if part == "params" else "learnt" for part in tree}


def _decayed(rate: float, updates: Any, params: Any) -> Any:
    """Adds the decay. What a method learns has another zero; what Adam does not move has no gradient, and is no weight."""
    wide = lambda update, leaf: update + rate * leaf * jnp.any(update != 0)
    return {**updates, "params": jax.tree.map(wide, updates["params"], params["params"])}


#: Stages in order; a stage's transform sees the view of the earlier ones.
Recipe = Sequence[Stage]


def _wrong(recipe: Any) -> str:
    """Which entry of a list of stages is none, in words."""
    entries = recipe if isinstance(recipe, list | tuple) and not isinstance(recipe, Transform) else ()
    return next((f", its entry {i} {in_words(x)}" for i, x in enumerate(entries) if not isinstance(x, Stage)), "")


def check_recipe(recipe: Recipe) -> tuple[Stage, ...]:
    """The recipe as a tuple.

    Raises:
      TypeError: an entry is no ``Stage``.
      ValueError: no stage, a name twice, or a ``thaw`` or ``rewind`` that names no earlier stage.
    """
    if not isinstance(recipe, list | tuple) or not all(isinstance(stage, Stage) for stage in recipe):
        raise TypeError(f"recipe is {in_words(recipe)}{_wrong(recipe)}; pass a list of stages: [Stage(name, transform), ...]")
    if not recipe:
        raise ValueError("recipe: no stage; pass at least one Stage(name, transform)")
    earlier: list[str] = ["baseline"]
    for stage in recipe:
        if stage.name in earlier:
            raise ValueError(f"recipe: two stages are called {stage.name!r} (the float network is 'baseline'); rename one")
        wanted = [("thaw", name) for name in stage.thaw] + ([("rewind", stage.rewind)] if stage.rewind else [])
        for field, name in wanted:
            if name not in earlier[1:]:
                raise ValueError(
                    f"stage {stage.name!r}: {field}={name!r} is no earlier stage; "
                    f"{f'allowed are {earlier[1:]}' if earlier[1:] else f'there is none: leave {field} out'}"
                )
        earlier.append(stage.name)
    return tuple(recipe)


def control(recipe: Recipe) -> tuple[Stage, ...]:
    """The training of a recipe without what it does to the network: an equal-training control.

    Stages keep their epochs, learning rates, optimizers, averages and teacher; transforms and rules go.
    ``compress(network, control(recipe), task)`` with the same seed trains the float network as long, on the same minibatches:
    what its last stage gained over the baseline is the training's share of what the recipe's gained.

    Example:
      >>> recipe = [
      ...     jn.Stage("prune", jn.prune(sparsity=0.5), epochs=3),
      ...     jn.Stage("w4a8", jn.quantize(4), rule=jn.arithmetic("w4a8")),
      ... ]
      >>> [(stage.name, stage.epochs, stage.rule) for stage in jn.control(recipe)]
      [('prune', 3, None), ('w4a8', 0, None)]
    """
    plain = functools.partial(
        dataclasses.replace, transform=identity(), rule=None, training_rule=None, thaw=(), calibration=None
    )
    return tuple(map(plain, check_recipe(recipe)))


def _calibration(stage: Stage) -> dict[str, Any]:
    """In words, where there is one."""
    if stage.calibration is None:
        return {}
    weights = stage.calibration.weights
    named = getattr(weights, "__name__", "") or re.sub(r" at 0x[0-9a-f]+", "", repr(weights))
    return {"calibration": {"weights": None if weights is None else named, "sequential": stage.calibration.sequential}}


def _rules(stage: Stage) -> str | None:
    """The name of the rule, with the patterns of several."""
    several = [f"{pattern}: {rule.name}" for pattern, rule in stage.cases]
    return stage.rule.name if isinstance(stage.rule, Rule) else ", ".join(several) or None


def described(recipe: Recipe, methods: Sequence[Transform]) -> list[dict[str, Any]]:
    """The recipe in words, for reports; ``methods`` are the transforms that its stages add."""
    return [
        {
            "name": stage.name,
            "method": (stage.transform if isinstance(stage.transform, Pass) else method).traits.name,
            "epochs": stage.epochs,
            "learning_rate": "schedule" if callable(stage.learning_rate) else stage.learning_rate,
            "weight_decay": stage.weight_decay,
            "optimizer": "Adam" if stage.optimizer is None else "given",
            "ema": stage.ema,
            "rewind": stage.rewind,
            "rule": _rules(stage),
            "training_rule": stage.training_rule.name if stage.training_rule else None,
            **_calibration(stage),
            "distill": dataclasses.asdict(stage.distill) if stage.distill else None,
        }
        for stage, method in zip(recipe, methods, strict=True)
    ]
