"""What steps at most take, one after the other: of a plan that was cut short, those that are left."""

from __future__ import annotations

from dataclasses import dataclass, field

from snaptree.model.figures import NOTHING, Confidence, Figure, total, unknown
from snaptree.model.merging import LayerMerge, LayerTree
from snaptree.plans.delete import DeleteCosts, add_delete_costs
from snaptree.plans.facts import Facts
from snaptree.plans.plan import (
    CopyOut,
    DeleteSnapshot,
    Forecast,
    ForkAtSnapshot,
    MergeLayers,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RevertToSnapshot,
    Step,
    TakeSnapshot,
)
from snaptree.plans.revert import freed_by_revert, new_layers
from snaptree.plans.situation import Situation
from snaptree.plans.speed import Speed
from snaptree.plans.take import forecast_take


@dataclass
class StepCosts:
    """A sum that grows step by step."""

    layer_tree: LayerTree
    """The layers before the first of the steps."""
    _costs: DeleteCosts = field(default_factory=DeleteCosts)
    _extra: Figure = NOTHING
    """What was taken and not given back, by now."""
    _peak: Figure = NOTHING
    _deleted: int = 0

    def add(self, step: Step, before: Situation, then: Situation) -> None:
        """Count a step that leads from one situation to another."""
        match step:
            case TakeSnapshot():
                self._takes(forecast_take(step, before).peak_extra)
            case RevertToSnapshot() | ForkAtSnapshot():
                target = before.tree[step.name]
                self._takes(total(new_layers(before, target)))
                self._costs.frees.append(freed_by_revert(before, then, target))
            case DeleteSnapshot():
                self._delete(step, Facts(before))
            case MergeLayers():
                self._merge(step)
            case RecordLayers():
                self._deleted += len(step.forgotten)
            case RemoveLeftover(path=path):
                self._remove(path, before)
            case RemoveLook(files=files):
                for path in files:
                    self._remove(path, before)
            case CopyOut():
                self._copy(step)

    def forecast(self, speed: Speed) -> Forecast:
        """What all of them take; `seconds` counts the deletes among them alone."""
        copies = total(self._costs.copies)
        seconds = speed.seconds(self._deleted, copies) if self._deleted else 0.0
        return Forecast(copies, total(self._costs.frees), self._peak, seconds)

    def _takes(self, more: Figure) -> None:
        self._extra = total([self._extra, more])
        if self._peak.bytes is not None and (self._extra.bytes is None or self._extra.bytes > self._peak.bytes):
            self._peak = self._extra

    def _gives_back(self, less: Figure) -> None:
        if self._extra.bytes is not None:
            self._extra = Figure(max(0, self._extra.bytes - (less.bytes or 0)), self._extra.confidence, self._extra.how)

    def _delete(self, step: DeleteSnapshot, facts: Facts) -> None:
        self._deleted += 1
        snapshot = facts.situation.tree[step.name]
        costs = DeleteCosts()
        add_delete_costs(costs, facts, snapshot, facts.delete_effect(snapshot))
        self._costs.add(costs)
        for copied in costs.copies:
            self._takes(copied)
        for copied in costs.copies:
            self._gives_back(copied)

    def _merge(self, step: MergeLayers) -> None:
        key = self.layer_tree.layers.key
        merge = LayerMerge(tuple(map(key, step.layers)), key(step.merged))
        self._costs.copies.append(self.layer_tree.copies(merge))
        self._takes(self.layer_tree.growth(merge))

    def _copy(self, step: CopyOut) -> None:
        copied = unknown("inside an image: needs an analysis of its clusters")
        if step.copies is not None:
            copied = Figure(step.copies, Confidence.UPPER_BOUND, "what the snapshot holds")
        self._costs.copies.append(copied)
        self._takes(copied)

    def _remove(self, path: str, before: Situation) -> None:
        image = Facts(before).image(path)
        if path in before.missing_files or (image is not None and image.is_missing):
            return
        taken = before.layers.memory_files.get(path) if image is None else image.allocated
        if taken is None:
            taken = unknown("this file was not looked at")
        elif taken.bytes is not None and self._costs.copies:
            taken = Figure(taken.bytes, Confidence.UPPER_BOUND, "files that go; less where their data moves")
        self._costs.frees.append(taken)
        self._gives_back(taken)
