"""How the transforms of a recipe add up: stage k trains those of the stages 1 to k together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxopt_nn.core.combine import chain
from jaxopt_nn.core.gates import frozen, later
from jaxopt_nn.core.transform import State, Transform
from jaxopt_nn.pipeline.recipe import Stage


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulated:
    """What a number of steps an epoch makes of a recipe.

    Attributes:
      stages: of the recipe. added: the transform of each. methods: after each stage, those of all stages so far.
    """

    stages: tuple[Stage, ...]
    added: tuple[Transform, ...]
    methods: tuple[Transform, ...]

    def upto(self, k: int) -> Accumulated:
        """The recipe that ends with stage ``k``."""
        return Accumulated(self.stages[: k + 1], self.added[: k + 1], self.methods[: k + 1])

    def state(self, own: Sequence[State]) -> State:
        """The state of the accumulated method, of the stages' own."""
        return joined([each if thawed(self.stages, i) else State((), each) for i, each in enumerate(own)])

    def own(self, state: State) -> list[State]:
        """The stages' own states, of that of the accumulated method."""
        if len(self.stages) == 1:
            return [state]
        parts = [State(*parts) for parts in zip(state.learnt, state.carried, strict=True)]
        return [each if thawed(self.stages, i) else each.carried for i, each in enumerate(parts)]


def accumulate(stages: tuple[Stage, ...], steps: int) -> Accumulated:
    """The transforms after each stage, for ``steps`` steps an epoch.

    Raises:
      ValueError: a schedule does not reach its end.
    """
    added = tuple(stage.method(steps * stage.epochs) for stage in stages)
    _check_ends(stages, added, steps)
    return Accumulated(stages, added, tuple(_method(stages[: k + 1], added[: k + 1], steps) for k in range(len(added))))


def _method(stages: Sequence[Stage], added: Sequence[Transform], steps: int) -> Transform:
    """The transforms of all stages so far, those of earlier ones frozen, or thawed and with their clocks running on."""
    earlier = [
        later(_ran(stages[:-1], i, steps), each) if thawed(stages, i) else frozen(each) for i, each in enumerate(added[:-1])
    ]
    return chain(*earlier, added[-1])


def thawed(stages: Sequence[Stage], i: int) -> bool:
    """Whether stage ``i`` moves on while the last of ``stages`` is trained: it is the last, or the last thaws it."""
    return i == len(stages) - 1 or stages[i].name in stages[-1].thaw


def joined(states: Sequence[State]) -> State:
    """The state of a chain; a chain of one member is that member."""
    if len(states) == 1:
        return states[0]
    return State(tuple(s.learnt for s in states), tuple(s.carried for s in states))


def _ran(stages: Sequence[Stage], i: int, steps: int) -> int:
    """How many updates stage ``i`` has seen after all of ``stages``: its own, and those of stages that thaw it."""
    return steps * sum(s.epochs for s in (stages[i], *stages[i + 1 :]) if s is stages[i] or stages[i].name in s.thaw)


def _check_ends(stages: Sequence[Stage], added: Sequence[Transform], steps: int) -> None:
    """Raises ValueError where a schedule has not reached its last value when its last update is done."""
    for i, (stage, method) in enumerate(zip(stages, added, strict=True)):
        ran = _ran(stages, i, steps)
        left = method.traits.pending(max(ran - 1, 0))
        if left:
            raise ValueError(
                f"stage {stage.name!r}: at the last of its {ran} steps its {left}; let the schedule end earlier (in a config "
                "as a share of the stage such as 0.7, here with a transform that is a function of the number of steps), "
                "train longer, or thaw the stage in a later one"
            )
