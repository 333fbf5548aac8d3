"""Locks on open files, which end with the process that holds them, however it ends."""

import errno

LOCKED = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def try_lock(file_descriptor: int) -> bool:
    """Whether an open file is ours alone until it is closed; False if another opening of it is.

    Raises:
        OSError: Where there are no such locks: a file system or a system without them.
    """
    try:
        import fcntl  # not on Windows
    except ImportError as exc:
        raise OSError(errno.ENOLCK, "this system has no flock") from exc
    try:
        fcntl.flock(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno not in LOCKED:
            raise
        return False
    return True
