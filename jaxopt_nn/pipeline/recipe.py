"""Recipes: what is done to a network, stage after stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxopt_nn.core.rule import Rule
from jaxopt_nn.core.transform import Transform

if TYPE_CHECKING:
    import optax


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: a transform joins those of the earlier stages, and the network is trained with all of them.

    Attributes:
      name: in reports; unique within a recipe.
      transform: what this stage adds.
      epochs: passes over the training data; 0 for none.
      learning_rate: Adam's, decayed to zero over the stage by half a cosine; or an optax schedule of the stage's step.
      rule: what the deployed network's sites compute, e.g. ``arithmetic("w4a8")``; None evaluates the codes with float
        activations. Holds for this stage, not for later ones.
      thaw: names of earlier stages whose ``carried`` (masks, say) goes on changing.

    Raises:
      ValueError: an empty name, negative epochs, a learning rate that is no positive number.
      TypeError: ``transform`` or ``rule`` of another type.
    """

    name: str
    transform: Transform
    epochs: int = 0
    learning_rate: float | Callable[[Any], Any] = 1e-3
    rule: Rule | None = None
    thaw: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("Stage(name=''): a stage needs a name")
        where = f"stage {self.name!r}"
        if not isinstance(self.transform, Transform):
            raise TypeError(
                f"{where}: transform is {type(self.transform).__name__}; pass a Transform, e.g. quantize(4)"
            )
        if not (self.rule is None or isinstance(self.rule, Rule)):
            raise TypeError(f"{where}: rule is {type(self.rule).__name__}; pass a Rule, e.g. arithmetic('w4a8')")
        if isinstance(self.epochs, bool) or not isinstance(self.epochs, int) or self.epochs < 0:
            raise ValueError(f"{where}: epochs={self.epochs!r}; allowed are the whole numbers from 0")
        if not callable(self.learning_rate) and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"{where}: learning_rate={self.learning_rate}; a positive number or an optax schedule")

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Adam over ``steps`` steps."""
        import optax

        rate = self.learning_rate
        return optax.adam(rate if callable(rate) else optax.cosine_decay_schedule(rate, max(steps, 1)))


#: Stages in order; a stage's transform sees the view of the earlier ones.
Recipe = Sequence[Stage]


def check_recipe(recipe: Recipe) -> tuple[Stage, ...]:
    """The recipe as a tuple.

    Raises:
      TypeError: an entry is no ``Stage``.
      ValueError: no stage, a name twice, or a ``thaw`` that names no earlier stage.
    """
    if isinstance(recipe, Stage) or not all(isinstance(stage, Stage) for stage in recipe):
        raise TypeError("recipe: pass a list of Stage(name, transform, ...)")
    if not recipe:
        raise ValueError("recipe: no stage; pass at least one Stage(name, transform)")
    earlier: list[str] = ["baseline"]
    for stage in recipe:
        if stage.name in earlier:
            raise ValueError(f"recipe: two stages are called {stage.name!r} (the float network is 'baseline')")
        for name in stage.thaw:
            if name not in earlier[1:]:
                raise ValueError(
                    f"stage {stage.name!r}: thaw={name!r} is no earlier stage; {earlier[1:] or 'there is none'}"
                )
        earlier.append(stage.name)
    return tuple(recipe)
