"""The texts that servers are asked: real tweets, with as many words never seen before as real traffic has."""

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
    """Words that stand in one text only: most addresses, many names, numbers and typing errors."""
    counts = Counter(word for text in texts for word in set(text.split()))
    return {word for word, count in counts.items() if count == 1}


def with_new_words(texts: Sequence[str], rare: set[str], count: int) -> list[str]:
    """These texts in turn, over again until there are `count`.

    The last letters and digits of a rare word are others each time: a server that has seen a text before has not seen
    that word, as it would not have from other people.
    """
    generator = random.Random(SEED)
    return [
        " ".join(_changed(word, generator) if word in rare else word for word in text.split(" "))
        for text in islice(cycle(texts), count)
    ]


def _changed(word: str, generator: random.Random) -> str:
    places = [match.start() for match in _LETTER_OR_DIGIT.finditer(word)][-CHANGED_CHARACTERS:]
    characters = list(word)
    for place in places:
        kind = string.digits if word[place].isdigit() else string.ascii_lowercase
        characters[place] = generator.choice(kind)
    return "".join(characters)
