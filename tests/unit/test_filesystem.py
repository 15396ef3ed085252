"""Which folders a run may lie in, by the file systems that Linux says are mounted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fleetune.errors import UserError
from fleetune.lab import filesystem
from fleetune.lab.filesystem import is_network, network_type, refuse_network, type_in

MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /proc rw,nosuid - proc proc rw
30 22 0:40 / /home rw,relatime shared:9 master:2 - nfs4 server:/home rw,vers=4.2
31 30 254:1 / /home/me/scratch rw - xfs /dev/vdb rw
32 22 0:41 / /mnt/two\\040words rw - cifs //server/share rw
33 22 0:42 / /data rw - ext4 /dev/vdc rw
34 33 0:43 / /data rw - lustre mds@tcp:/fs rw
35 22 0:44 / /mnt/tab\\011and\\134slash rw - fuse.sshfs me@there: rw
36 22 0:45 / /zero rw - tmpfs tmpfs rw
not a line
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/", "ext4"),
        ("/root/runs/a", "ext4"),
        ("/home", "nfs4"),
        ("/home/me/runs", "nfs4"),
        ("/homework/runs", "ext4"),
        ("/home/me/scratch/run", "xfs"),
        ("/home/me/scratchy", "nfs4"),
        ("/mnt/two words/run", "cifs"),
        ("/data/run", "lustre"),
        ("/mnt/tab\tand\\slash/run", "fuse.sshfs"),
        ("/zero", "tmpfs"),
    ],
)
def test_the_innermost_mount_decides_and_of_two_at_one_point_the_later(place: str, kind: str):
    assert type_in(MOUNTS, place) == kind


def test_nothing_mounted_says_nothing():
    assert type_in("", "/home") is None


def test_disks_of_this_machine_are_told_from_others():
    for local in (
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "tmpfs",
        "overlay",
        "apfs",
        "ntfs",
        "fuseblk",
        "fuse.mergerfs",
        "f2fs",
    ):
        assert not is_network(local), local
    for network in (
        "nfs",
        "nfs4",
        "CIFS",
        "smb3",
        "9p",
        "ceph",
        "lustre",
        "gpfs",
        "fuse.sshfs",
        "fuse",
        "fuse.gcsfuse",
    ):
        assert is_network(network), network


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux has it")
def test_what_is_mounted_here_is_found_through_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert network_type(tmp_path / "not" / "there") is None
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 d rw\n2 1 0:2 / {os.path.realpath(tmp_path / 'far')} rw - nfs4 s:/ rw\n")
    monkeypatch.setattr(filesystem, "MOUNTS", mounts)
    assert network_type(tmp_path / "near" / "run") == "nfs4"
    assert network_type(tmp_path / "run") is None
    with pytest.raises(UserError) as refused:
        refuse_network(tmp_path / "near" / "my run")
    lines = str(refused.value).splitlines()
    assert len(lines) == 2 and "network file system (nfs4)" in lines[0]
    assert "my run'" in lines[1] and "--out" in lines[1] and "copy" in lines[1]
    refuse_network(tmp_path / "run")
