"""Backups: a tar.gz that was read back and compared before it counts, with checksums inside and beside it."""

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from caspi.ops.training.artifacts import flush_to_disk
from caspi.records import RunFailed, sha256_of_file, write_atomically

SUMS = "SHA256SUMS"
"""First member of every archive; `sha256sum -c` reads it after unpacking."""
FREE_SPACE_FACTOR = 1.02
"""Of the size of the files: gzip and tar add little to what does not compress."""
CHUNK_BYTES = 1 << 20


class Archive(NamedTuple):
    path: Path
    sha256: str
    num_files: int
    num_bytes: int
    """Of the files in it."""


def write_archive(folder: Path, paths: Sequence[Path], target: Path, *, compression_level: int) -> Archive:
    """Pack files of `folder` and read them back; SHA256 of the archive goes to `TARGET.sha256`.

    Raises:
        RunFailed: there is not enough room, a file changed meanwhile, or what was written is not what was read.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    num_bytes = sum((folder / name).stat().st_size for name in names)
    target.parent.mkdir(parents=True, exist_ok=True)
    require_space(target.parent, num_bytes)
    sums = {name: sha256_of_file(folder / name) for name in names}
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    try:
        pack(folder, sums, Path(temporary), compression_level)
        check_archive(Path(temporary), sums)
        digest = sha256_of_file(Path(temporary))
        flush_to_disk(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise RunFailed(f"backup {target} could not be written: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    write_atomically(target.with_name(f"{target.name}.sha256"), f"{digest}  {target.name}\n")
    return Archive(target, digest, len(names), num_bytes)


def require_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes * FREE_SPACE_FACTOR > free:
        gib = 1 << 30
        raise RunFailed(
            f"a backup in {folder} needs up to {num_bytes * FREE_SPACE_FACTOR / gib:.1f} GiB, {free / gib:.1f} GiB are "
            "free: give another --backup-dir, or --backup logs"
        )


def pack(folder: Path, sums: dict[str, str], target: Path, compression_level: int) -> None:
    listing = sums_text(sums).encode()
    with tarfile.open(target, "w:gz", compresslevel=compression_level) as archive, tempfile.TemporaryFile() as file:
        file.write(listing)
        file.seek(0)
        header = tarfile.TarInfo(f"{folder.name}/{SUMS}")
        header.size = len(listing)
        archive.addfile(header, file)
        for name in sums:
            archive.add(folder / name, arcname=f"{folder.name}/{name}", recursive=False)


def sums_text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def check_archive(path: Path, sums: dict[str, str]) -> None:
    """
    Raises:
        RunFailed: a file in the archive is not as it was hashed before.
    """
    found = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            stream = archive.extractfile(member)
            assert stream is not None, "only regular files are packed"
            digest = hashlib.sha256()
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
            found[member.name.partition("/")[2]] = digest.hexdigest()
    found.pop(SUMS)
    differing = sorted(name for name in sums.keys() | found.keys() if sums.get(name) != found.get(name))
    if differing:
        raise RunFailed(
            f"backup {path.name} does not hold {differing[0]} as it is on the disk; is the run still going?"
        )
