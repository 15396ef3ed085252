"""Which errors are a trial's own, so that the others of its fleet go on."""

from __future__ import annotations

import torch

from fleetune.engine.evaluation import EvaluationStoppedError
from fleetune.errors import ENDS_RUN
from fleetune.memory import is_out_of_memory

_OF_ALL = (OSError, *ENDS_RUN, EvaluationStoppedError)


def is_own(error: Exception) -> bool:
    """Returns whether what a trial's own work raised concerns that trial alone: not the disk, the run, or memory."""
    return not (is_of_all(error) or is_out_of_memory(error))


def is_of_all(error: Exception) -> bool:
    """Returns whether an error is of the disk, the run or the accelerator, whichever trial's work met it."""
    return isinstance(error, _OF_ALL) or is_of_device(error)


def is_of_device(error: Exception) -> bool:
    """Returns whether an accelerator failed, which this process can use no more then; not that its memory ran out."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)
