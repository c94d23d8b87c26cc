"""Durable files: a reader sees the old content or the new, never a part, no matter what is killed when.

Every file and directory that anything relies on later is published through here: written under a
temporary name, fsynced, renamed, and the directory fsynced. Called by everything that writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError

TEMPORARY = ".tmp-"
"""Prefix of everything unfinished. Whatever carries it may be deleted while no run is active."""
UMASK = os.umask(0o022)
"""The process's umask, read once at import: reading it means setting it, which other threads would see."""
os.umask(UMASK)


FULL = re.compile("no space left on device|disk quota exceeded|file too large", re.IGNORECASE)
"""How libraries word a full disk, an exhausted quota or a file size limit (`ulimit -f`) in errors of their own."""


def disk_is_full(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk: libraries wrap the OSError in errors of their own."""
    while error is not None:
        if FULL.search(str(error)) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only workspace or missing permissions into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise InputError(f"{path}: no space left on the disk; free some and run the same command again") from None
        if error.errno in (errno.EDQUOT, errno.EFBIG):
            raise InputError(
                f"{path}: over your quota or file size limit ({error.strerror}); free some space, or raise the quota "
                "or `ulimit -f`, and run the same command again"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{path}: a file or a dangling link is in place of a directory; move it away") from None
        if error.errno in (errno.ENAMETOOLONG, errno.ENOENT, errno.ELOOP):
            raise InputError(f"{path}: cannot be created ({error.strerror}); choose another place") from None
        raise


def make_directory(path: Path) -> Path:
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Make every file below ``directory``, and the directories themselves, durable. Files with mode 0600 get the mode
    that the umask allows."""
    for root, _, names in os.walk(directory):
        for name in names:
            with open(Path(root) / name, "rb") as file:
                os.fsync(file.fileno())
                if os.fstat(file.fileno()).st_mode & 0o777 == 0o600:
                    os.fchmod(file.fileno(), 0o666 & ~UMASK)  # safetensors creates files with mode 0600
        fsync_directory(Path(root))


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace ``path`` by ``content`` in one step. ``durable=False`` skips the fsync (for progress files)."""
    make_directory(path.parent)
    data = content.encode() if isinstance(content, str) else content
    with disk_errors(path):
        # tempfile would create it with mode 0600, whatever the umask
        name = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
        try:
            with open(name, "xb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        if durable:
            fsync_directory(path.parent)


def publish_directory(built: Path, final: Path) -> None:
    """Move a finished directory to its final name, replacing an older one."""
    with disk_errors(final):
        fsync_tree(built)
        make_directory(final.parent)
        if final.exists():
            old = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=final.parent))
            os.replace(final, old / final.name)
            os.replace(built, final)
            shutil.rmtree(old)
        else:
            os.replace(built, final)
        fsync_directory(final.parent)


def link_place(name: Path) -> Path:
    """Return ``name`` if a link can be put there; `InputError` if a file or directory is in the way."""
    if name.exists() and not name.is_symlink():
        raise InputError(f"{name}: is in the way of a link to the stage's result; move it away or rename the stage")
    return name


def link(target: Path, name: Path) -> None:
    """Point the symbolic link ``name`` at ``target`` (relative), replacing an older link in one step."""
    temporary = name.with_name(f"{TEMPORARY}{name.name}")
    with disk_errors(name):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(target, name.parent))
        os.replace(temporary, name)
