"""Files that have their name only when they are whole: written beside it, synced, renamed."""
import contextlib
import errno
import os
import stat
from pathlib import Path

from . import UserError


def sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders of some file systems
            raise
    finally:
        os.close(handle)


def refuse_special(path):
    """A rename would put the file in the place of a device or a pipe."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UserError(f"{path}: expected the name of a file, this is a folder")
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: expected the name of a file, this is a device or a pipe")


def sync_and_rename(temporary, path):
    refuse_special(path)
    sync(temporary)
    os.replace(temporary, path)
    sync(Path(path).parent)


def write_atomically(path, content):
    """`content`: bytes. What was begun is removed if it cannot be finished."""
    path = Path(path)
    refuse_special(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
        sync_and_rename(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not know its file
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
