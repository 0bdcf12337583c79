"""What the client raises.

ClientError
├── UnreachableError       no connection, a dropped one, no answer in time
├── OverloadedError        503, still after all retries
├── NotAuthorizedError     the server wants a token, or another one
├── RefusedError           any other 4xx or 5xx
├── UnexpectedAnswerError  an answer, but not the JSON that was expected, or too much of it
├── NotReadyError          a version's workers end while they load, or take too long
├── RolloutError           a rollout or rollback stopped, or the version to remove is the default
├── PodError               kubectl cannot list the pods, or cannot forward to one
└── InputError             a file that cannot be read or must not be written; an invalid address, name, token or number
"""


class ClientError(Exception):
    """Base of all. The message is for the person who asked. It may quote the server: escape it before printing it."""


class UnreachableError(ClientError):
    pass


class OverloadedError(ClientError):
    def __init__(self, message: str, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """What the server's header `Retry-After` asks for; None without one."""


class NotAuthorizedError(ClientError):
    pass


class RefusedError(ClientError):
    """The server's own words: `type` and `message` of its error JSON; where it has none, HTTP's phrase and the body."""

    def __init__(self, status: int, type: str, message: str) -> None:  # noqa: A002  # the API's name for it
        super().__init__(f"{type}: {message}" if message else type)
        self.status = status
        self.type = type
        self.message = message


class UnexpectedAnswerError(ClientError):
    pass


class NotReadyError(ClientError):
    pass


class RolloutError(ClientError):
    pass


class PodError(ClientError):
    pass


class InputError(ClientError):
    pass
