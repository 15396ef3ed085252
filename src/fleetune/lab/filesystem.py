"""Which file system a folder is on. The ledger's WAL lies in memory that processes share: no network gives that."""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from pathlib import Path

from fleetune.errors import UserError

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset([
    "nfs", "nfs3", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "ncpfs", "afs", "openafs", "auristorfs", "coda",
    "9p", "ceph", "lustre", "gpfs", "mmfs", "beegfs", "beegfs_nodev", "fhgfs", "panfs", "pvfs2", "orangefs",
    "glusterfs", "gfs", "gfs2", "ocfs2", "wekafs", "moosefs", "davfs", "davfs2", "webdav", "afpfs", "ftpfs",
    "vboxsf", "prl_fs", "vmhgfs", "hgfs", "acfs", "objectivefs",
])  # fmt: skip
"""Shared folders of virtual machines are among them: what lies behind is another machine's."""
NETWORK_FUSE = frozenset([
    "sshfs", "rclone", "s3fs", "s3ql", "gcsfuse", "goofys", "geesefs", "mount-s3", "mountpoint-s3", "blobfuse",
    "blobfuse2", "glusterfs", "ceph", "ceph-fuse", "juicefs", "seaweedfs", "weed", "lizardfs", "moosefs", "mfs",
    "curlftpfs", "davfs", "drive", "google-drive-ocamlfuse", "gvfsd-fuse", "dbfs", "alluxio-fuse", "alluxio",
    "hdfs", "cvmfs2", "smbnetfs", "vmhgfs-fuse", "osxfs", "grpcfuse",
])  # fmt: skip


def network_type(folder: Path) -> str | None:
    """Returns the type of the network file system that `folder` is on, None where its disk is this machine's.

    Args:
        folder: Need not exist: then it is where it would be made.
    """
    place = os.path.realpath(folder)
    if place.startswith("\\\\"):
        return "UNC"
    found = _type_of(place)
    return found if found is not None and is_network(found) else None


def is_network(kind: str) -> bool:
    """Returns whether a file system of that type, as `mount` names it, is another machine's or may be."""
    kind = kind.lower()
    # A bare "fuse" does not say what is behind it.
    return kind in NETWORK or kind == "fuse" or kind.removeprefix("fuse.") in NETWORK_FUSE


def refuse_network(folder: Path) -> None:
    """Does nothing where a run can lie in `folder`.

    Raises:
        UserError: If it is on a network file system.
    """
    kind = network_type(folder)
    if kind is not None:
        local = Path(tempfile.gettempdir())
        place = "DIR" if network_type(local) is not None else shlex.quote(str(local / folder.name))
        raise UserError(
            f"{folder} is on a network file system ({kind}), where the ledger of a run can break.\n"
            f"Train on a disk of this machine, such as --out {place}, and copy that folder when the run is over"
        )


def _type_of(place: str) -> str | None:
    if MOUNTS.exists():
        try:
            return type_in(MOUNTS.read_text("utf-8", "surrogateescape"), place)
        except OSError:
            return None
    import psutil

    mounts = [(mount.mountpoint, mount.fstype) for mount in psutil.disk_partitions(all=True)]
    return _innermost(mounts, place)


def type_in(mountinfo: str, place: str) -> str | None:
    """Returns the type of the file system that `place` is on, by the lines of Linux's `/proc/self/mountinfo`."""
    mounts = []
    for line in mountinfo.splitlines():
        # Optional fields, whose number varies, end in a hyphen.
        before, hyphen, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if hyphen and len(fields) > 4 and types:
            mounts.append((_unescaped(fields[4]), types[0]))
    return _innermost(mounts, place)


def _innermost(mounts: list[tuple[str, str]], place: str) -> str | None:
    """Returns the type of the longest mount point above `place`; of several mounted at one point the last is seen."""
    longest, found = -1, None
    for point, kind in mounts:
        above = point.rstrip("/\\")
        if (place == above or place.startswith((above + "/", above + "\\"))) and len(above) >= longest:
            longest, found = len(above), kind
    return found


def _unescaped(point: str) -> str:
    """Returns a mount point as it is: blanks, tabs, line ends and backslashes are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), point)
