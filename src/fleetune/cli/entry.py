"""The `fleetune` command: every end it can come to is an exit code, and at most a few lines on stderr."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import traceback
import warnings

from fleetune.cli.output import print_error, print_json
from fleetune.errors import FleetuneError, is_panic
from fleetune.redaction import redacted

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_BROKEN_PIPE = 128 + 13
TRACEBACK_VARIABLE = "FLEETUNE_TRACEBACK"


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    sys.exit(run_command_line(sys.argv[1:]))


def run_command_line(arguments: list[str]) -> int:
    """Returns the exit code of `fleetune` with these arguments; prints, and never raises."""
    as_json = "--json" in arguments
    if not os.environ.get(TRACEBACK_VARIABLE):
        # What libraries warn of is for who writes code, not for who types commands.
        warnings.simplefilter("ignore")
    try:
        from fleetune.cli.app import app

        result = app(arguments, prog_name="fleetune", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except FleetuneError as error:
        return _failed(str(error), error.exit_code, as_json)
    except KeyboardInterrupt:
        return _failed("stopped", 128 + signal.SIGINT, as_json)
    except BrokenPipeError:
        # The reader has gone; a flush at exit would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        if (named := _storage_error(error)) is not None:
            return _failed(str(named), named.exit_code, as_json)
        if hasattr(error, "format_message"):
            return _wrong_usage(error, arguments, as_json)
        if os.environ.get(TRACEBACK_VARIABLE):
            sys.stderr.write(redacted(traceback.format_exc()))
        first = (str(error).strip().splitlines() or [""])[0]
        message = f"{type(error).__name__}: {first}\nThis is a fault of fleetune; its trace: {TRACEBACK_VARIABLE}=1"
        return _failed(message, EXIT_FAILED, as_json)


def _storage_error(error: BaseException) -> FleetuneError | None:
    """Returns what to say of a full, broken or shut disk, which is no fault of the program; None for other errors."""
    if not isinstance(error, OSError | sqlite3.Error):
        return None
    from fleetune.lab.disk import storage_error

    return storage_error(error, None)


def _wrong_usage(error: BaseException, arguments: list[str], as_json: bool) -> int:
    """Tells what was wrong with the arguments; typer's own exceptions all have `format_message`."""
    message = str(error.format_message()).rstrip().rstrip(".")  # type: ignore[attr-defined]
    if not arguments:
        sys.stdout.write(message + "\n")
        return EXIT_WRONG_INPUT
    from fleetune.cli.app import COMMANDS

    command = next((f" {word}" for word in arguments if word in COMMANDS), "")
    return _failed(f"{message}\nType: fleetune{command} --help", EXIT_WRONG_INPUT, as_json)


def _failed(message: str, code: int, as_json: bool) -> int:
    print_error(message)
    if as_json:
        print_json({"error": redacted(message)})
    return code
