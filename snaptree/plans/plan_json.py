"""Plans as JSON: the document that scripts read, and the lossless record of the journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from cattrs import Converter
from cattrs.cols import is_mapping, mapping_structure_factory
from cattrs.strategies import configure_tagged_union

from snaptree.plans.plan import (
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    ForgetMemory,
    ForkAtSnapshot,
    Freeze,
    FreezeFileSystems,
    MakeLook,
    MergeLayers,
    Plan,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StartLook,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
)
from snaptree.plans.plan_words import describe_step

RECORD_VERSION: Final = 1

_KINDS: Mapping[type[Step], str] = MappingProxyType(
    {
        FreezeFileSystems: "freeze",
        TakeSnapshot: "take",
        ThawFileSystems: "thaw",
        RevertToSnapshot: "revert",
        StopMachine: "stop",
        DropManagedSave: "drop-managed-save",
        ForkAtSnapshot: "fork",
        DeleteSnapshot: "delete",
        EndOrphanedMerge: "end-orphaned-merge",
        MergeLayers: "merge-layers",
        RecordLayers: "record-layers",
        ForgetMemory: "forget-memory",
        RemoveLeftover: "remove-leftover",
        DescribeSnapshot: "describe",
        RenameSnapshot: "rename",
        CopyOut: "copy-out",
        MakeLook: "make-look",
        StartLook: "start-look",
        RemoveLook: "remove-look",
    }
)


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """The document of `--json`: integers are bytes and seconds, null is what nobody can say (DESIGN, section 7)."""
    forecast = plan.forecast
    return {
        "action": plan.action.value,
        "domain": plan.domain,
        "snapshots": list(plan.snapshots),
        "steps": [_records().unstructure(step, Step) | {"says": describe_step(step)} for step in plan.steps],
        "forecast": {
            "copies": forecast.copies.bytes,
            "frees": forecast.frees.bytes,
            "peak_extra": forecast.peak_extra.bytes,
            "seconds": forecast.seconds,
            "pause_seconds": forecast.pause_seconds,
            "likely_extra": forecast.likely_extra,
            "growth_per_day": forecast.growth,
            "free": forecast.free,
            "confidence": {
                "copies": forecast.copies.confidence.value,
                "frees": forecast.frees.confidence.value,
                "peak_extra": forecast.peak_extra.confidence.value,
            },
        },
        "warnings": [{"rule": warning.rule, "reason": warning.reason} for warning in plan.warnings],
        "refusals": [
            {"rule": refusal.rule, "reason": refusal.reason, "remedy": refusal.remedy} for refusal in plan.refusals
        ],
        "settings": [asdict(change) for change in plan.settings],
        "undo": plan.undo is not None,
    }


def plan_to_record(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values from which `plan_from_record` makes an equal one."""
    record: dict[str, Any] = _records().unstructure(plan)
    return {"version": RECORD_VERSION} | record


def plan_from_record(record: Mapping[str, Any]) -> Plan:
    """The plan that `plan_to_record` wrote down. Raises ValueError, KeyError or TypeError for anything else."""
    if record["version"] != RECORD_VERSION:
        raise ValueError(f"a plan recorded in version {record['version']}, not {RECORD_VERSION}")
    return _records().structure(record, Plan)


@cache
def _records() -> Converter:
    """Made when it is first needed. What older journals do not have, is what the classes say by default."""
    converter = Converter(detailed_validation=False, unstruct_collection_overrides={tuple: list})
    configure_tagged_union(Step, converter, tag_name="kind", tag_generator=_KINDS.__getitem__)
    converter.register_structure_hook(Freeze, lambda said, _: _freeze(said))

    @converter.register_structure_hook_factory(is_mapping)
    def frozen(kind: Any, converter: Converter) -> Callable[[Any, Any], Mapping[str, Any]]:
        read = mapping_structure_factory(kind, converter)
        return lambda values, _: MappingProxyType(read(values, kind))

    return converter


def _freeze(said: str | bool) -> Freeze:
    """What was asked for; at first plans said yes or no."""
    if isinstance(said, bool):
        return Freeze.REQUIRED if said else Freeze.NO
    return Freeze(said)
