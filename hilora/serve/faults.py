"""What the service refuses, beyond what the library does; each says how HTTP says it."""

from __future__ import annotations

import errno
import sqlite3

from hilora.errors import HiloraError

FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "SQLITE_IOERR_WRITE")
"""What SQLite calls a disk that takes no more."""


class ServiceError(HiloraError):
    """The service refuses a request.

    Args:
        message: what, got, expected, remedy; names nothing that the caller may not see.
        code: OpenAI's, where it has one.
        param: which field of the request is meant.
    """

    status = 400
    type = "invalid_request_error"

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


class UnauthorizedError(ServiceError):
    """No token, or one that is not known."""

    status, type = 401, "authentication_error"


class ForbiddenError(ServiceError):
    """A token without the scope."""

    status, type = 403, "permission_error"


class MissingError(ServiceError):
    """Nothing of that name that the caller sees."""

    status, type = 404, "not_found_error"


class ConflictError(ServiceError):
    """It is there already, or somebody else is at it."""

    status, type = 409, "conflict_error"


class TooLargeError(ServiceError):
    """More bytes than are taken."""

    status, type = 413, "invalid_request_error"


class BusyError(ServiceError):
    """Too much at once: come again.

    Args:
        message: as above.
        after: seconds.
    """

    status, type = 429, "rate_limit_error"

    def __init__(self, message: str, after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code)
        self.after = after


class LateError(ServiceError):
    """The deadline has passed."""

    status, type = 504, "timeout_error"


class ClosingError(ServiceError):
    """The server is about to end."""

    status, type = 503, "server_error"


class AwayError(ServiceError):
    """What would answer is not there now: come again.

    Args:
        message: as above.
        after: seconds.
    """

    status, type = 503, "server_error"

    def __init__(self, message: str, after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code)
        self.after = after


class UnusableError(ServiceError):
    """Files of an adapter are damaged."""

    status, type = 503, "server_error"

    def __init__(self, message: str = "", param: str | None = None) -> None:
        super().__init__(message or DAMAGED, "adapter_damaged", param)


DAMAGED = "An adapter of this prompt turned out to be damaged on the server's disk. Ask again: others serve it now."


class FullError(ServiceError):
    """The server's disk is full."""

    status, type = 507, "server_error"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or DISK_FULL, "disk_full")


DISK_FULL = "No space is left on the server's disk. Nothing was changed; come again once there is some."


def is_full(error: BaseException | None) -> bool:
    """Whether something failed because a disk is full."""
    while error is not None:
        if isinstance(error, FullError):
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorname", "") in FULL:
            return True
        error = error.__cause__
    return False
