"""How much one request may ask for, so that no request can hold up the others for long."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

ENVIRONMENT_PREFIX = "CLASSIFIER_"
THREADS_VARIABLE = "OMP_NUM_THREADS"


def whole_number(variable: str, default: int, environment: Mapping[str, str] = os.environ) -> int:
    """An environment variable's value, or the default where it is not set.

    Raises:
        ValueError: not a whole number above 0.
    """
    value = environment.get(variable, "").strip() or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{variable} must be a whole number above 0, not {value!r}.")
    return int(value)


@dataclass(frozen=True)
class Limits:
    """Upper bounds, in characters (code points), token reads, texts and bytes.

    A request that exceeds a limit by itself gets 413. A request that exceeds a limit only together with the other
    requests of its batch gets 503.
    """

    max_text_characters: int = 20_000
    """Of one text. The longest known film review has 13,704, a tweet at most 280."""

    max_texts: int = 1_000
    """In one request."""

    max_request_characters: int = 200_000
    """Of all texts of one request together."""

    max_batch_characters: int = 400_000
    """Of all requests that TorchServe hands over as one batch. Requests over it get 503."""

    max_token_reads: int = 91_000
    """Work for one request, or for all requests that TorchServe hands over as one batch, in token reads. A token of a
    short text counts 1.4, as the network reads 32 such texts together; a token of a text of more than 1,700 tokens
    counts 2.7. To explain a text, the network reads it once more for each of its tokens. A request over the limit by
    itself gets 413; a request that exceeds it together with the others of its batch gets 503. The work within the limit
    takes a core with AVX-512 at most 2 s for the embedded model; a batch with requests that are refused takes at most
    3 s (`docs/explanation/performance.md`). Prose has a token for every four or five characters, symbols can have one
    each."""

    max_batch_reply_bytes: int = 6_553_500
    """Bytes of all replies to one batch. TorchServe kills a worker that sends a body of more bytes than
    `max_response_size`. It also parses all replies of a batch anew with every packet until the last one has arrived.
    Many large replies together would therefore take longer than its response timeout."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """Defaults, with `CLASSIFIER_MAX_TEXTS` and so on in their place where set.

        Raises:
            ValueError: a variable is not a whole number above 0.
        """
        return cls(
            **{
                name: whole_number(ENVIRONMENT_PREFIX + name.upper(), default, environment)
                for name, default in asdict(cls()).items()
            }
        )
