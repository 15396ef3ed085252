"""Trains fleets one after another in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fleetune.lab.executors.base import BackboneFacts, FleetJob, StartedFleet
from fleetune.methods.baseline import Baseline

if TYPE_CHECKING:
    from fleetune.engine.backbone import Backbone
    from fleetune.engine.trial import TrialSpec
    from fleetune.lab.plan import Trial


NO_MODEL = BackboneFacts(None, None, None, None)


class LocalExecutor:
    """Keeps the last backbone loaded, since fleets that share one follow each other."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._backbone: Backbone | None = None

    def start(self, job: FleetJob) -> StartedFleet:
        """Returns the fleet of `job`, ready to train."""
        from fleetune.engine.fleet import Fleet

        if isinstance(job.specs[0].method, Baseline):
            return self._start_baseline(job, job.specs[0].method)
        backbone = self._load(job)
        fleet = Fleet(backbone, job.specs, job.data, job.checkpoints, job.checkpoint_seconds, job.is_stopped)
        return StartedFleet(facts_of(backbone, job.specs), fleet.train(), heeds_stop=True)

    def _start_baseline(self, job: FleetJob, baseline: Baseline) -> StartedFleet:
        from fleetune.engine.backbone import load_tokenizer
        from fleetune.engine.baselines import run_baseline
        from fleetune.engine.zero_shot import FrozenModel

        (spec,) = job.specs
        if not baseline.reads_model:
            return StartedFleet(NO_MODEL, run_baseline(spec, job.dataset))
        backbone = self._load(job)
        model = FrozenModel(backbone, load_tokenizer(job.backbone), job.max_tokens)
        facts = facts_of(backbone)
        facts = replace(facts, notes=(*facts.notes, *baseline.notes(model)))
        return StartedFleet(facts, run_baseline(spec, job.dataset, model))

    def _load(self, job: FleetJob) -> Backbone:
        from fleetune.engine.backbone import load_backbone

        key = (job.backbone, job.num_labels, job.precision, job.labels)
        if self._backbone is None or self._key != key:
            # The old one is let go first, so that two never lie in memory together.
            self._backbone = None
            self._backbone = load_backbone(job.backbone, job.num_labels, job.precision, job.labels)
            self._key = key
        return self._backbone


def facts_of(backbone: Backbone, specs: Sequence[TrialSpec | Trial] = ()) -> BackboneFacts:
    """Returns what the ledger keeps of a loaded backbone, and of how the trials over it are laid out and stepped."""
    from fleetune.engine.optimizers import optimizer_notes

    layout, reason = backbone.layout, backbone.layout_reason
    if specs:
        layout, reason = backbone.layout_for(specs[0].method)
    own = [] if layout == backbone.layout else [f"Layout: {reason}."]
    notes = *backbone.notes, *own, *optimizer_notes(spec.training for spec in specs)
    return BackboneFacts(layout, reason, backbone.precision, backbone.model_hash, notes)
