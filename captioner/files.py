"""Writes the files and folders that a user named: aside, to disk, then renamed. They are there whole or not at all."""

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
    """Open as UTF-8. Bytes of a file name that are not UTF-8 become \\udcXX, which JSON reads back as the same name."""
    return open(file, mode, encoding="utf-8", errors="backslashreplace", newline="")


@contextmanager
def reporting(name: object) -> Iterator[None]:
    """Say in one line that `name` cannot be written.

    Raises:
        CaptionerError: instead of an OSError. A BrokenPipeError stays one: whoever read it has seen enough.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        own = (str(name), os.path.realpath(str(name)))  # and what is written beside them
        other = f": {error.filename}" if error.filename and not str(error.filename).startswith(own) else ""
        raise CaptionerError(f"{name}: cannot be written: {error.strerror or error}{other}") from error


def is_plain(path: Path) -> bool:
    """Is this a regular file, or would it be one? Devices, pipes and what stdout goes to can only be written through.

    Raises:
        OSError: the path cannot be followed.
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
    """Find out before the work is done whether `whole_file` could write its result.

    Raises:
        CaptionerError: a folder, a file that is read-only, or a place where no file can be made.
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
    """Open `path` for text; what was there stays until all is written, and for good where that fails.

    Links are followed: the file they lead to is replaced, with its permissions. One that has several names (hard links)
    keeps them. What is not `is_plain` is written through.

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
    """Open what is not `is_plain`. Where stdout or stderr go there already, what they wrote is not written over."""
    descriptor = _descriptor(path.stat())
    return open_text(path if descriptor is None else os.dup(descriptor), "w")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `output` when all is written, and nothing where that fails.

    Raises:
        CaptionerError: `output` is there already, or cannot be made.
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
    """A folder to write into, which takes the place of `folder` when all is written; the one before stays until then.

    A crash between the two renames leaves the one before under another name: see `recover_folder`.

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
    """Wait at the end of the block until all of the folder `partial` is on disk; errors call it `name`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:  # safetensors raises this in place of an OSError
        raise CaptionerError(f"{name}: cannot be written: {error}") from error
    for file in partial.rglob("*"):
        sync_path(file)
    sync_path(partial)


def recover_folder(folder: Path) -> None:
    """Put the folder before back, if a crash fell between the two renames of `replaced_folder`."""
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
    """Wait until what was written is on disk, where a crash of the machine does not reach it."""
    file.flush()
    os.fsync(file.fileno())


def sync_path(path: Path) -> None:
    """`sync` for a closed file; for a folder, for the names in it."""
    if os.name == "nt":  # FlushFileBuffers wants a file that is open for writing, and knows no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _descriptor(status: os.stat_result) -> int | None:
    """Which of stdout and stderr goes to the file that has this status, as /dev/stdout does."""
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
        return _overwrite(target, partial)  # mounted by itself, as into a container
    sync_path(target.parent)


def _overwrite(target: Path, partial: Path) -> None:
    shutil.copyfile(partial, target)
    sync_path(target)
