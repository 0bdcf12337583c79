"""Templates of synthetic English sentences with a label, filled with random words.

`training.measure.behaviour` fills templates to test a classifier, `training.stages.augmentation` fills other templates
to train one.
"""

import random
import re
from typing import Final

NEGATIVE, NEUTRAL, POSITIVE = LABELS = ("negative", "neutral", "positive")
"""Labels of the sentences."""

Words = dict[str, tuple[str, ...]]
"""The words for each placeholder of a template, by the placeholder's name."""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


def fill(template: str, words: Words, generator: random.Random) -> str:
    """Replace each placeholder by a random word of its list, and correct "a" to "an" before a vowel."""
    return with_articles(_PLACEHOLDER.sub(lambda place: generator.choice(words[place[1]]), template))


def fill_with(template: str, words: dict[str, str]) -> str:
    """Replace each placeholder by its given word, and correct "a" to "an" before a vowel."""
    return with_articles(template.format_map(words))


def with_articles(text: str) -> str:
    """Correct the article "a" to "an" where the next word begins with a vowel sound."""
    return re.sub(r"\b([Aa]) (?=(?!use|uni)[aeioAEIOu])", r"\1n ", text)
