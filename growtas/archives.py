"""Checks zip archives of other people before their members are read."""

from __future__ import annotations

import zipfile
from pathlib import PurePosixPath

MEMBERS = 20_000
"""Largest number of members; a checkpoint has one for each tensor."""


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Checks that the members of an archive of torch are stored plainly, each once, and that together they fit into the file.

    torch never compresses the members, so a compressed one is none of torch's and could expand without end.

    Args:
        archive: the opened archive, of which only the directory was read.
        size: size of the file in bytes.

    Raises:
        ValueError: the archive breaks one of these rules; the message is the reason.
    """
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise ValueError(f"it has {len(members)} members; at most {MEMBERS} are read")
    names = {member.filename for member in members}
    if len(names) != len(members):
        raise ValueError("two of its members have the same name")
    for member in members:
        path, name = PurePosixPath(member.filename), repr(member.filename[:60])
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise ValueError(f"its member {name} has a name that leads out of the archive")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size or member.flag_bits & 1:
            raise ValueError(f"its member {name} is compressed or encrypted")
    if sum(member.file_size for member in members) > size:
        raise ValueError("its members are larger than the file")
