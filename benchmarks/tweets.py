"""The texts for the servers: real tweets, with as many new words as real traffic has."""

import random
import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import cycle, islice

SEED = 1
CHANGED_CHARACTERS = 3

_LETTER_OR_DIGIT = re.compile(r"[A-Za-z0-9]")


def rare_words(texts: Iterable[str]) -> set[str]:
    """The words that occur in one text only: most URLs, and many names, numbers and misspellings."""
    counts = Counter(word for text in texts for word in set(text.split()))
    return {word for word, count in counts.items() if count == 1}


def with_new_words(texts: Sequence[str], rare: set[str], count: int) -> list[str]:
    """The texts, repeated until there are `count`, with new rare words in each repetition.

    The last letters and digits of a rare word differ each time, so that a server has not seen the word before, as in
    texts of other users.
    """
    generator = random.Random(SEED)
    return [
        " ".join(_changed(word, generator) if word in rare else word for word in text.split(" "))
        for text in islice(cycle(texts), count)
    ]


def _changed(word: str, generator: random.Random) -> str:
    positions = [match.start() for match in _LETTER_OR_DIGIT.finditer(word)][-CHANGED_CHARACTERS:]
    characters = list(word)
    for position in positions:
        alphabet = string.digits if word[position].isdigit() else string.ascii_lowercase
        characters[position] = generator.choice(alphabet)
    return "".join(characters)
