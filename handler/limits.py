"""The limits of requests and batches, so that no request can block others for long."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from reprlib import repr as shortened

ENVIRONMENT_PREFIX = "CLASSIFIER_"
THREADS_VARIABLE = "OMP_NUM_THREADS"
MAX_DIGITS = 18
"""Maximum number of digits of a setting. Python refuses to convert thousands of digits."""


def whole_number(variable: str, default: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the value of an environment variable, or the default if the variable is not set.

    Raises:
        ValueError: the value is not a whole number above 0, or has more than `MAX_DIGITS` digits.
    """
    value = environment.get(variable, "").strip() or str(default)
    if not value.isdecimal() or len(value) > MAX_DIGITS or int(value) < 1:
        expected = f"a whole number above 0 of at most {MAX_DIGITS} digits"
        raise ValueError(f"{variable} must be {expected}, not {shortened(value)}.")
    return int(value)


@dataclass(frozen=True)
class Limits:
    """Upper bounds in characters (code points), token reads, texts and bytes.

    A batch consists of the requests that TorchServe hands to a worker together. A request that exceeds a limit by
    itself gets 413. A request that exceeds a limit only together with the other requests of its batch gets 503.
    """

    max_text_characters: int = 20_000
    """Characters of one text. The longest known film review has 13,704 characters, a tweet has at most 280."""

    max_texts: int = 1_000
    """Texts of one request."""

    max_request_characters: int = 200_000
    """Characters of all texts of one request."""

    max_batch_characters: int = 400_000
    """Characters of all texts of one batch. This limit never refuses the smallest request of a batch."""

    max_token_reads: int = 91_000
    """Computation for one request, and for one batch, in token reads.

    A token of a short text counts 1.4 token reads, as the network reads 32 such texts together. A token of a text of
    more than 1,700 tokens counts 2.7. To explain a text, the network reads it once more for each of its tokens, so the
    default permits explanations of up to 280 tokens. Prose has a token for every four or five characters; a symbol can
    be a token.

    With the embedded model, the work within the limit takes a core with AVX-512 at most 2 s. A batch with refused
    requests takes at most 3 s (`docs/explanation/performance.md`). A token of a larger network counts more: 3.1
    times as much for 400/1152/3 in int8, 6.9 times in int8-fine (`handler/padding.py`). The largest request then takes
    at most twice as long as with the embedded model.
    """

    max_batch_reply_bytes: int = 6_553_500
    """Bytes of all replies to one batch.

    TorchServe kills a worker that sends a body of more bytes than `max_response_size`. It also parses all replies of a
    batch again with every packet until the last packet has arrived. Many large replies together would therefore take
    longer than its response timeout.
    """

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """Read the limits from environment variables such as `CLASSIFIER_MAX_TEXTS`, or use their defaults.

        Raises:
            ValueError: the value of a variable is not a whole number above 0.
        """
        return cls(
            **{
                name: whole_number(ENVIRONMENT_PREFIX + name.upper(), default, environment)
                for name, default in asdict(cls()).items()
            }
        )
