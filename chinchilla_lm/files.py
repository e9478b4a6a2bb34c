"""Files that are whole or not there: atomic writes, folders built aside and renamed, hashes, JSON with clear errors.

A write goes to a temporary name in the same folder, is flushed to the disk and renamed, so a crash, a full disk or a
Ctrl-C leaves the old file as it was. A folder is built under a hidden sibling name and takes the place of the old one
by two renames; a sibling left behind by a killed process is removed by the next one to build the same folder here.
"""

import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from chinchilla_lm.errors import InputError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_BYTES = 1 << 20  # one read while hashing; larger reads are no faster


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write `data` (text as UTF-8) to `path`, wholly or not at all; missing parent folders are made.

    A link is followed; a device or pipe (`/dev/stdout`) is written to directly. Raises InputError, in one line, for
    whatever the operating system refuses: no space, no permission, a folder in the way.
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(payload)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_beside_and_rename(target, payload)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: str | os.PathLike[str], error: OSError) -> InputError:
    room = "free room or " if error.errno in _NO_ROOM else ""
    return InputError(f"cannot write {path}: {error.strerror or error}; {room}pass another -o")


def _write_beside_and_rename(target: Path, payload: bytes) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


@contextmanager
def building_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden name beside `path` for a file to be written under; it takes its place on success, synced to the
    disk, and is removed on any failure. Missing parent folders are made.

    Raises InputError for whatever the operating system refuses, while the file is written too.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system lets a folder be opened (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems cannot sync a folder; the file itself is safe on the disk by then.
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a person wrote it, `~` replaced. Raises InputError where that has no meaning, as in many containers."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(
            f"{path} begins with ~, but this user has no home; set HOME, or pass the whole path"
        ) from error


def cache_folder() -> Path:
    """Where this user's cache of ours is, or would be. Raises InputError where the user has no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "chinchilla"
    except RuntimeError as error:
        raise InputError("this user has no home to keep a cache in; set XDG_CACHE_HOME to a folder") from error


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes as 64 hex digits. Raises InputError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes as 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_text(path: str | os.PathLike[str], what: str, newline: str | None = None) -> str:
    """The UTF-8 text of a file. `what` names it in errors (`plan`); newline: as open has it, "" leaves line ends alone.

    Raises InputError when missing or not UTF-8.
    """
    try:
        with open(path, encoding="utf-8", newline=newline) as file:
            return file.read()
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist; check the path") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{what} {path} is not UTF-8 text (byte {error.start}); restore it or make it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {what} {path}: {error.strerror or error}; check the path") from error


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """The value in a JSON file. `what` names it in errors (`plan`). Raises InputError when missing or damaged."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{error.msg} at line {error.lineno} column {error.colno}"
        raise InputError(f"{what} {path} is not valid JSON: {place}; restore it or make it again") from error
    except RecursionError as error:
        raise InputError(f"{what} {path} is nested too deeply for JSON; restore it or make it again") from error


def json_text(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """`value` as strict JSON: NaN and infinities become null; numpy and torch numbers, dataclasses, paths and sets
    become their plain forms. Raises TypeError for anything else that JSON cannot say."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "tolist", None)):  # a numpy scalar or array, a torch tensor
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} has no JSON form")


@contextmanager
def building(folder: str | os.PathLike[str], marker: str = "config.json") -> Iterator[Path]:
    """Yield an empty hidden sibling of `folder` to fill; rename it to `folder` on success, remove it on any failure.

    An existing `folder` is replaced only when it is empty or holds a file named `marker`, which every folder made here
    holds: a home folder given by mistake is left alone. Raises InputError for that and for a parent that cannot be
    written; the check comes first, before hours of work.
    """
    final = Path(os.path.realpath(folder))
    _refuse_foreign(final, marker, folder)
    temporary = final.with_name(f".{final.name}.building-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep_leftovers(final)
        temporary.mkdir()
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield temporary
        replace_folder(temporary, final)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise _cannot_write(folder, error) from error
        raise


def _refuse_foreign(final: Path, marker: str, named: str | os.PathLike[str]) -> None:
    if not final.exists():
        return
    if not final.is_dir():
        raise InputError(f"{named} is a file, not a folder; remove it or pass another -o")
    if any(final.iterdir()) and not (final / marker).exists():
        raise InputError(f"{named} holds files but no {marker}, so it is not ours to replace; pass another -o")


def _sweep_leftovers(final: Path) -> None:
    """Remove what killed processes of this machine left beside `final`: half-built folders and replaced ones."""
    for leftover in final.parent.glob(f".{glob.escape(final.name)}.building-{glob.escape(socket.gethostname())}-*"):
        pid = leftover.name.split("-")[-2]
        if pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)
    if final.exists():  # otherwise the replaced folder is the only copy: replace_folder was cut between its renames
        for leftover in final.parent.glob(f".{glob.escape(final.name)}.replaced-*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process; a leftover costs only room
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def replace_folder(tmp: str | os.PathLike[str], final: str | os.PathLike[str]) -> None:
    """Rename folder `tmp` to `final` (same file system); an old `final` is kept until the new one is in place.

    Raises InputError when the system refuses; the old folder is then back under its name and `tmp` is untouched.
    """
    new, target = Path(tmp), Path(os.path.realpath(final))
    old = target.with_name(f".{target.name}.replaced-{secrets.token_hex(4)}")
    try:
        had_old = target.exists()
        if had_old:
            os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            if had_old:
                os.rename(old, target)
            raise
    except OSError as error:
        raise _cannot_write(final, error) from error
    _sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)
