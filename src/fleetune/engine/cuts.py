"""When a fleet saves itself, and how it is taken up again: always all trials under way together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fleetune.engine.generation import CheckpointStore, Generation
from fleetune.engine.trial import Trial


class Cuts:
    """Takes a fleet's checkpoints.

    Args:
        store: Keeps them; without one nothing is saved.
        seconds: Time between two.
    """

    def __init__(self, store: CheckpointStore | None, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._saved_at = time.monotonic()

    def take_up(self, trials: Sequence[Trial]) -> tuple[list[Trial], Mapping[str, int]]:
        """Puts the trials to where the newest checkpoint has them; returns those under way, and how they are packed.

        Raises:
            ValueError: If the checkpoint is of other trials.
        """
        self._saved_at = time.monotonic()
        generation = None if self._store is None else self._store.latest()
        if generation is None or self._store is None:
            return list(trials), {}
        by_id = {trial.spec.id: trial for trial in trials}
        if missing := [trial for trial in generation.ids if trial not in by_id]:
            raise ValueError(f"the checkpoint in {self._store.root} is of other trials, such as {missing[0]}")
        for cut in generation.trials:
            by_id[cut.trial].resume(cut, self._store.root)
        return [by_id[trial] for trial in generation.ids], generation.packing

    @property
    def is_due(self) -> bool:
        """Whether the time between two checkpoints is over."""
        return time.monotonic() - self._saved_at >= self._seconds

    def save(self, running: Sequence[Trial], packing: Mapping[str, int]) -> None:
        """Writes where the trials under way stand; it counts when all of it is on disk."""
        if self._store is None:
            return
        name, root = self._store.new_name(), self._store.root
        self._store.commit(Generation(tuple(trial.cut(root, name) for trial in running), packing))
        self._saved_at = time.monotonic()

    def close(self, trial: Trial) -> None:
        """Writes what readers need of a trial that has ended, unless they have it from another time.

        That it would be the same holds for a processor and one number of threads alone.
        """
        if self._store is not None and not self._store.has_final(trial.spec.id):
            with self._store.writing():
                trial.write_final(self._store.root / trial.spec.id)

    def end(self) -> None:
        """Lets go of the fleet's checkpoints, since no trial is under way."""
        if self._store is not None:
            self._store.end()
