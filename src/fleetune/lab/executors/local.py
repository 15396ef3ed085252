"""Trains fleets one after another in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetune.lab.executors.base import BackboneFacts, FleetJob, StartedFleet

if TYPE_CHECKING:
    from fleetune.engine.backbone import Backbone


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
        return StartedFleet(facts_of(backbone), fleet.train())

    def _load(self, job: FleetJob) -> Backbone:
        from fleetune.engine.backbone import load_backbone

        key = (job.backbone, job.num_labels, job.precision, job.labels)
        if self._backbone is None or self._key != key:
            # The old one is let go first, so that two never lie in memory together.
            self._backbone = None
            self._backbone = load_backbone(job.backbone, job.num_labels, job.precision, job.labels)
            self._key = key
        return self._backbone


def facts_of(backbone: Backbone) -> BackboneFacts:
    """Returns what the ledger keeps of a loaded backbone."""
    return BackboneFacts(
        backbone.layout, backbone.layout_reason, backbone.precision, backbone.model_hash, tuple(backbone.notes)
    )
