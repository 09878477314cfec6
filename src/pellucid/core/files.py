"""Files that appear whole or not at all, and folders that know the hashes of what they hold."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pellucid.core.errors import CorruptionError, ModelError, ResourceError

MANIFEST = "manifest.json"
PARTIAL = ".partial"  # the ending of what is still being written; nobody reads it


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, met while writing below `path`, into a `ResourceError` with the free space in it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        folder = next(p for p in [path, *path.absolute().parents] if p.is_dir())
        free = format_bytes(shutil.disk_usage(folder).free)
        raise ResourceError(
            f"{path}: the disk is full ({free} free in {folder}); make room there, or choose another folder"
        ) from error


def is_disk_full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "os error 28" in str(error) or "No space left" in str(error)  # safetensors reports it in words only


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write a file to; it is synced and takes the name `path` when the block ends well.

    Inside a folder that `atomic_folder` fills nothing is synced yet: the folder syncs all its files before it gets its name.
    """
    durable = not (path.parent.name.startswith(".") and path.parent.name.endswith(PARTIAL))
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                sync(temporary)
            temporary.replace(path)
            if durable:
                sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all (UTF-8)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, limit: int = 64_000_000) -> Any:
    """Read a JSON file of at most `limit` bytes; damage is a `CorruptionError` that names the file."""
    if (size := path.stat().st_size) > limit:
        raise CorruptionError(
            f"{path} has {format_bytes(size)}, but JSON is read up to {format_bytes(limit)}; restore the file"
        )
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, a number of 5,000 digits, or nested too deep
        raise CorruptionError(f"{path} is not valid JSON ({error}); restore it, or delete the folder it is in") from None


def own_file(folder: Path, name: str) -> Path | None:
    """The path of a file that belongs to a model folder; None if there is none of that name.

    A name or a link that leads out of the folder is refused, unless the link leads to the blobs of the Hugging Face cache
    that the folder lies in (models--OWNER--NAME/snapshots/REVISION/file -> ../../blobs/HASH).
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"{folder}: the file name {name!r} leads out of the folder; name a file inside it")
    path = folder / name
    if not os.path.lexists(path):
        return None
    home, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    caches = (p.parent for p in home.parents if p.name == "snapshots" and p.parent.name.startswith("models--"))
    if not any(real.is_relative_to(allowed) for allowed in (home, *(cache / "blobs" for cache in caches))):
        raise ModelError(f"{path} is a link to {real}, outside its folder; replace it by a copy of the file")
    if not path.is_file():
        raise ModelError(f"{path} is a folder, a device or a broken link; replace it by a regular file")
    return path


@contextmanager
def atomic_folder(folder: Path, *, sealed: bool = True, replace: bool = True) -> Iterator[Path]:
    """A temporary folder to fill; it is synced and takes the name `folder` when the block ends well.

    `sealed` gives it a manifest of hashes. An older folder of that name is replaced, or without `replace` is an error.
    A kill at any instant leaves the old folder, the new one, or none: never a part.
    """
    folder = folder.absolute()  # so that it has a name even if it is "."
    temporary = folder.with_name(f".{folder.name}{PARTIAL}")
    with disk_errors(folder):
        remove_folder(temporary)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if sealed:
                seal(temporary)
            else:
                sync_files(temporary)
            old = set_aside(folder) if replace else None
            temporary.rename(folder)
            sync(folder.parent)
            if old:
                shutil.rmtree(old)
        finally:
            remove_folder(temporary)


def seal(folder: Path) -> None:
    """Write the manifest (size and SHA-256 of every file) of a finished folder and sync it all."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    manifest = {p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": hash_file(p)} for p in files}
    write_json(folder / MANIFEST, manifest)
    sync_files(folder)


def sync_files(folder: Path) -> None:
    """Wait until everything below a folder, and the folder's own entries, are on the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def verify(folder: Path, *, hashes: bool = True) -> None:
    """Hold a folder against its manifest; raise `CorruptionError` naming the first file that differs.

    With `hashes=False` only presence and size are compared, which is instant.
    """
    if not (folder / MANIFEST).is_file():
        raise CorruptionError(f"{folder} has no {MANIFEST}, so it was never finished; delete it")
    manifest = read_manifest(folder)
    if manifest is None:
        raise CorruptionError(f"{folder / MANIFEST} is damaged; delete {folder}")
    for name, expected in manifest.items():
        compare(folder, name, expected, hashes=hashes)


def verify_file(path: Path) -> None:
    """Hold one file against the manifest beside it, if that is ours and lists it; the files around it may have changed."""
    manifest = read_manifest(path.parent) or {}
    if path.name in manifest:
        compare(path.parent, path.name, manifest[path.name])


def read_manifest(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Size and hash of every file as they were written; None without a manifest, or with one that is not ours."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    ours = isinstance(manifest, dict) and all(
        isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"} for entry in manifest.values()
    )
    return manifest if ours else None


def compare(folder: Path, name: str, expected: dict[str, Any], *, hashes: bool = True) -> None:
    file = folder / name
    if not file.is_file():
        raise CorruptionError(f"{file} is missing; restore it, or delete {folder}")
    if file.stat().st_size != expected["bytes"]:
        raise CorruptionError(
            f"{file} has {file.stat().st_size} bytes, but {expected['bytes']} were written; restore it, or delete {folder}"
        )
    if hashes and hash_file(file) != expected["sha256"]:
        raise CorruptionError(f"{file} is damaged (its SHA-256 is not the one in {MANIFEST}); restore it, or delete {folder}")


def remove_folder(folder: Path) -> None:
    """Delete a folder if it is there; it loses its name first, so that nobody meets half of it."""
    if folder.name.endswith(PARTIAL) and folder.exists():
        shutil.rmtree(folder)
    elif doomed := set_aside(folder):
        shutil.rmtree(doomed)


def set_aside(folder: Path) -> Path | None:
    """Give a folder that is to be deleted a name that nobody reads; None if there is none."""
    if folder.is_symlink():
        folder.unlink()
    if not folder.exists():
        return None
    doomed = folder.with_name(f".{folder.name}.deleted{PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    return folder.replace(doomed)


def format_bytes(count: float) -> str:
    """A size as people say it: 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
