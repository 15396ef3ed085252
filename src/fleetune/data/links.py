"""Keeps what is written and deleted in a folder from reaching out of it by links: a run may come from a stranger."""

from __future__ import annotations

import os
from pathlib import Path

from fleetune.errors import RunError


def refuse_links(folder: Path, *names: str) -> None:
    """Does nothing if none of these of a folder, nor what is in them, is a link or leads out of the folder.

    Args:
        folder: May be reached by a link itself: it is what the user named.
        names: What of it is looked at; all of it if none are given.

    Raises:
        RunError: If one is or does.
    """
    root = Path(os.path.realpath(folder))
    waiting = [root / name for name in names] or [root]
    while waiting:
        path = waiting.pop()
        is_folder = path.is_dir()
        # A junction of Windows is no symbolic link, but leads elsewhere all the same.
        if path.is_symlink() or (is_folder and _differ(os.path.realpath(path), path)):
            raise RunError(
                f"{folder / path.relative_to(root)} is a link; a run writes to, and deletes, files of its own folder "
                "only.\nPut the folder or file itself in its place, or remove the link"
            )
        if is_folder:
            waiting += path.iterdir()


def _differ(real: str, path: Path) -> bool:
    return os.path.normcase(real) != os.path.normcase(path)
