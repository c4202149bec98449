"""Writes files and folders completely or not at all: under a temporary name, synced to disk, then renamed."""

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO

from captioner.errors import CaptionerError

MAY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def open_text(file: Path | int, mode: Literal["a", "w", "x"]) -> TextIO:
    """Open as UTF-8. Bytes of file names that are not UTF-8 are written as \\udcXX, which JSON restores."""
    return open(file, mode, encoding="utf-8", errors="backslashreplace", newline="")


@contextmanager
def reporting(name: object) -> Iterator[None]:
    """Turn an OSError inside the block into one line that says that `name` cannot be written.

    Raises:
        CaptionerError: instead of an OSError, except for BrokenPipeError, which is not an error of the user.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        own = (str(name), os.path.realpath(str(name)))  # also prefixes of the temporary names
        other = f": {error.filename}" if error.filename and not str(error.filename).startswith(own) else ""
        raise CaptionerError(f"{name}: cannot be written: {error.strerror or error}{other}") from error


def is_plain(path: Path) -> bool:
    """Is this a regular file, or a new one? Devices, pipes and the file behind stdout can only be written to.

    Raises:
        OSError: the path cannot be resolved.
        CaptionerError: it is a folder.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return True
    if stat.S_ISDIR(status.st_mode):
        raise CaptionerError(f"{path}: a folder")
    return stat.S_ISREG(status.st_mode) and _descriptor(status) is None


def check_file(path: Path) -> None:
    """Check before the work whether `whole_file` will be able to write its result.

    Raises:
        CaptionerError: the path is a folder or read-only, or no file can be created there.
    """
    with reporting(path):
        if is_plain(path):
            target = _target(path)
            if target.exists() and (not os.access(target, os.W_OK) or not target.stat().st_mode & MAY_WRITE):
                raise CaptionerError(f"{path}: read-only")
            probe = _aside(target)
            probe.touch(exist_ok=False)
            probe.unlink()
        elif _descriptor(path.stat()) is None and not os.access(path, os.W_OK):
            raise CaptionerError(f"{path}: cannot be written: permission denied")


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """Open `path` for writing text. A previous file is replaced only when everything has been written.

    Symbolic links are followed; permissions and hard links are kept. Devices and pipes are written to directly.

    Raises:
        CaptionerError: it cannot be written.
    """
    with reporting(path):
        if not is_plain(path):
            with open_stream(path) as file:
                yield file
            return
        target = _target(path)
        partial = _aside(target)
        try:
            with open_text(partial, "x") as file:
                yield file
                sync(file)
            _replace(target, partial)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """A path beside `path` for a library to write to; it becomes `path` when all is written, as of `whole_file`.

    Raises:
        CaptionerError: it cannot be written.
    """
    with reporting(path):
        target = _target(path)
        partial = _aside(target)
        try:
            yield partial
            sync_path(partial)
            _replace(target, partial)
        finally:
            partial.unlink(missing_ok=True)


def open_stream(path: Path) -> TextIO:
    """Open a path that is not `is_plain`; if it is the file behind stdout or stderr, their output stays."""
    descriptor = _descriptor(path.stat())
    return open_text(path if descriptor is None else os.dup(descriptor), "w")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder, which becomes `output` if the block succeeds and is deleted if it fails.

    Raises:
        CaptionerError: `output` already exists or cannot be created.
    """
    if os.path.lexists(output):
        raise CaptionerError(f"{output}: exists already")
    if not output.parent.is_dir():
        raise CaptionerError(f"{output}: there is no folder {output.parent}")
    with reporting(output), tempfile.TemporaryDirectory(prefix=f"{output.name}.", dir=output.parent) as temporary:
        partial = Path(temporary) / output.name
        partial.mkdir()
        with _synced(partial, output):
            yield partial
        partial.rename(output)
        sync_path(output.parent)


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces `folder` when the block succeeds.

    A crash between the two renames leaves the previous folder under another name: see `recover_folder`.

    Raises:
        CaptionerError: it cannot be written.
    """
    partial, old = folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")
    with reporting(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with _synced(partial, folder):
            yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        sync_path(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _synced(partial: Path, name: Path) -> Iterator[None]:
    """After the block, sync everything in the folder `partial` to disk; error messages call it `name`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:  # safetensors raises this instead of an OSError
        raise CaptionerError(f"{name}: cannot be written: {error}") from error
    for file in partial.rglob("*"):
        sync_path(file)
    sync_path(partial)


def recover_folder(folder: Path) -> None:
    """Restore the previous folder if a crash happened between the two renames of `replaced_folder`."""
    old = folder.with_name(folder.name + ".old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock on what `path` names for as long as the block lasts; the system frees it if the process dies.

    The lock is the file `path`.lock beside it.

    Raises:
        CaptionerError: another process holds it.
    """
    lock = path.with_name(f"{path.name}.lock")
    with ExitStack() as stack:
        with reporting(path):
            file = stack.enter_context(_locked(lock))
        if file is None:
            raise CaptionerError(
                f"{path}: another run is at work on it (it holds {lock.name}); wait until it has ended"
            )
        try:
            yield
        finally:
            with suppress(OSError):  # Windows does not remove a file that is open
                lock.unlink(missing_ok=True)


@contextmanager
def _locked(lock: Path) -> Iterator[TextIO | None]:
    while True:
        with open(lock, "a", encoding="utf-8") as file:
            if not _try_lock(file.fileno()):
                yield None
                return
            try:
                current = os.path.samestat(os.fstat(file.fileno()), lock.stat())
            except FileNotFoundError:
                current = False
            if current:  # else the holder before has removed the file that we opened
                yield file
                return


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def sync(file: TextIO) -> None:
    """Wait until everything written is on disk, so that it survives a crash of the machine."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """`sync` for a closed file, or for the names in a folder."""
    if os.name == "nt":  # FlushFileBuffers needs a file that is open for writing, and does not support folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _descriptor(status: os.stat_result) -> int | None:
    """Return which of stdout and stderr is the file with this status, as for /dev/stdout."""
    for descriptor in (1, 2):
        try:
            if os.path.samestat(os.fstat(descriptor), status):
                return descriptor
        except OSError:  # closed
            continue
    return None


def _target(path: Path) -> Path:
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise CaptionerError(f"{path}: there is no folder {target.parent if path.is_symlink() else path.parent}")
    return target


def _aside(target: Path) -> Path:
    return target.with_name(f"{target.name}.{secrets.token_hex(4)}.tmp")


def _replace(target: Path, partial: Path) -> None:
    if target.exists():
        shutil.copymode(target, partial)
        if target.stat().st_nlink > 1:
            return _overwrite(target, partial)
    try:
        os.replace(partial, target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return _overwrite(target, partial)  # a single mounted file, as in a container
    sync_path(target.parent)


def _overwrite(target: Path, partial: Path) -> None:
    shutil.copyfile(partial, target)
    sync_path(target)
