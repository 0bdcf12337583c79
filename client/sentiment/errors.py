"""The exceptions that the client raises.

ClientError
├── UnreachableError       no connection, a connection that was dropped, or a timeout
├── OverloadedError        status 503, after all retries
├── NotAuthorizedError     the server requires a token, or rejects the given one
├── RefusedError           any other status from 400 to 599
├── UnexpectedAnswerError  a reply that is not the expected JSON, or is too large
├── NotReadyError          a version's workers end while they load, or take too long
├── RolloutError           a rollout or rollback stopped, or the version to remove is the default or the only one
├── PodError               kubectl cannot list the pods, or cannot forward to one
└── InputError             an unreadable or protected file; an invalid address, name, token or number
"""


class ClientError(Exception):
    """Base class of the client's errors.

    The message is meant for users. It may quote the server, so escape it before you print it.
    """


class UnreachableError(ClientError):
    """No connection to the server, a connection that was dropped, or a timeout."""


class OverloadedError(ClientError):
    """The server answered with status 503, after all retries."""

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """The pause that the server asks for in its header `Retry-After`, in seconds; None without this header."""


class NotAuthorizedError(ClientError):
    """The server requires a token, or rejects the given one."""


class RefusedError(ClientError):
    """The server refused the request, with another status from 400 to 599 than those of the other errors.

    `type` and `message` are those of the server's error JSON. If the reply has no such JSON, they are HTTP's reason
    phrase and the start of the body.
    """

    def __init__(self, status: int, type: str, message: str) -> None:  # noqa: A002  # the API's name for it
        super().__init__(f"{type}: {message}" if message else type)
        self.status = status
        self.type = type
        self.message = message


class UnexpectedAnswerError(ClientError):
    """The reply is not the expected JSON, or is too large."""


class NotReadyError(ClientError):
    """A version's workers end while they load, or take too long."""


class RolloutError(ClientError):
    """A rollout or rollback stopped, or the version to remove is the default or the only one."""


class PodError(ClientError):
    """Kubectl is missing, cannot list the pods, or cannot forward to one."""


class InputError(ClientError):
    """A file cannot be read or must not be written; or an address, a name, a token or a number is invalid."""
