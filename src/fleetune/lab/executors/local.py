"""Trains fleets one after another in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetune.lab.executors.base import BackboneFacts, FleetJob, StartedFleet

if TYPE_CHECKING:
    from fleetune.engine.backbone import Backbone
    from fleetune.methods.base import Method


class LocalExecutor:
    """Keeps the last backbone loaded, since fleets that share one follow each other."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._backbone: Backbone | None = None

    def start(self, job: FleetJob) -> StartedFleet:
        """Returns the fleet of `job`, ready to train."""
        from fleetune.engine.fleet import Fleet

        backbone = self._load(job)
        fleet = Fleet(backbone, job.specs, job.data, checkpoints=job.checkpoints)
        return StartedFleet(facts_of(backbone, job.specs[0].method), fleet.train())

    def _load(self, job: FleetJob) -> Backbone:
        from fleetune.engine.backbone import load_backbone

        key = (job.backbone, job.num_labels, job.precision)
        if self._backbone is None or self._key != key:
            # The old one is let go first, so that two never lie in memory together.
            self._backbone = None
            self._backbone = load_backbone(job.backbone, job.num_labels, job.precision)
            self._key = key
        return self._backbone


def facts_of(backbone: Backbone, method: Method) -> BackboneFacts:
    """Returns what the ledger keeps of a loaded backbone and the first method of a fleet on it."""
    layout, reason = backbone.layout_for(method)
    notes = backbone.notes if layout == backbone.layout else [*backbone.notes, f"Layout: {reason}."]
    return BackboneFacts(layout, reason, backbone.precision, backbone.model_hash, tuple(notes))
