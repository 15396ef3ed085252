"""The exceptions that Fleetune raises on purpose.

    FleetuneError
    ├── UserError                exit code 2: the input is wrong, and the message says what to type
    │   ├── RecipeError          a recipe, a flag or a setting
    │   ├── DataError            a data file or a data set
    │   ├── BackboneError        a model folder or a hub name
    │   ├── MethodError          a method that cannot be applied to this backbone
    │   ├── BundleError          a bundle that is damaged or does not fit
    │   └── MissingExtraError    an optional dependency that is not installed
    └── RunError                 exit code 1: the work started and failed
        ├── TrialFailedError     one trial's training went wrong (its neighbours go on)
        ├── RunLockedError       another process works on the same run folder
        ├── RunTakenOverError    another process took the run up; this one may write nothing any more
        ├── StorageError         a disk is full, broken, read-only, or shut to this user
        ├── DeviceError          an accelerator failed; another process may use it again
        └── ExportMismatchError  a bundle does not give the logits of the trial it came from

A message is one or two lines: what was got, what was expected, what to do.
"""

from __future__ import annotations

import sqlite3


class FleetuneError(Exception):
    """Base of every exception that Fleetune raises on purpose."""

    exit_code = 1


class UserError(FleetuneError):
    """The user's input is wrong."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, a flag or a setting is wrong."""


class DataError(UserError):
    """A data file or data set cannot be used as it is."""


class BackboneError(UserError):
    """A model folder or hub name cannot be used as a backbone."""


class MethodError(UserError):
    """A method cannot be applied to this backbone."""


class BundleError(UserError):
    """A bundle is damaged, incomplete or does not fit its backbone."""


class MissingExtraError(UserError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.\nType: pip install 'fleetune[{extra}]'"
        )


class RunError(FleetuneError):
    """The work started and failed."""


class TrialFailedError(RunError):
    """One trial's training went wrong; its neighbours go on."""


class RunLockedError(RunError):
    """Another process works on the same run folder."""


class RunTakenOverError(RunError):
    """Another process took the run up; this one may write nothing any more."""


class StorageError(RunError):
    """A disk is full, broken, read-only, or shut to this user. The message names the file."""


class DeviceError(RunError):
    """An accelerator failed, and this process can use it no more."""


class ExportMismatchError(RunError):
    """A bundle does not give the logits of the trial it came from."""


ENDS_RUN = (RunTakenOverError, StorageError, DeviceError, sqlite3.Error)
"""What no trial of a run can be trained after."""


def is_panic(error: BaseException) -> bool:
    """Returns whether a library written in Rust broke down; what it raises then is no Exception."""
    return type(error).__name__ == "PanicException"


def in_one_line(error: BaseException) -> str:
    """Returns why something failed: the first line of Fleetune's own errors, with the type of others before it."""
    said = str(error) if isinstance(error, FleetuneError) else f"{type(error).__name__}: {error}"
    return (said.strip().splitlines() or [type(error).__name__])[0]
