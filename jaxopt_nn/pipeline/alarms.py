"""What must be said first of a run: rules that do nothing, a network that no longer knows more than a constant answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxopt_nn.core.report import Report
from jaxopt_nn.interpret.network import Network
from jaxopt_nn.pipeline.task import Task

#: A stage that keeps less than this share of what the baseline knows beyond chance has lost it.
KEPT = 0.1
#: A baseline that is better than chance by less than this knows nothing that could be lost.
KNOWN = 0.05


def unused_rules(name: str, ready: Network, task: Task, report: Report) -> list[str]:
    """Of a stage whose rules take no compressed weight; ``report`` is that of its prepared network on the task's example."""
    said = ready.run.unused(ready.variables, task.example, report)
    return [f"stage {name!r}: {said}"] if said else []


def at_chance(task: Task, names: Sequence[str], rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Of stages that fell to the level of chance; ``rows`` are the metrics of the baseline and of the stages ``names``."""
    said = []
    for metric, chance in (task.chance(task.judged) if task.chance else {}).items():
        known = rows[0][metric] - chance
        for name, row in zip(names, rows[1:], strict=True):
            if known > KNOWN and row[metric] - chance < KEPT * known:
                said.append(
                    f"stage {name!r}: {metric} fell from {rows[0][metric]:.1%} to {row[metric]:.1%}, and who always gives the "
                    f"most frequent answer has {chance:.1%}: its training diverged, or it removes too much; lower its "
                    "learning_rate, or compress less"
                )
    return said
