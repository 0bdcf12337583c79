"""Maps the characters of a changed text to the original text.

The text rules change a text before it is split into tokens: `Great` becomes `xxmaj great`. `TracedText` applies the
same changes and keeps the span of the original text that each character represents. A token can therefore be shown at
its place in the user's text.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

Span = tuple[int, int]
"""Begin and end (exclusive) of a part of a text, in characters (code points)."""


@dataclass(frozen=True)
class Substitution:
    """A replacement of every match of a pattern, as by `re.sub`."""

    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    """A template for `re.sub`, or a function that returns the replacement of a match."""

    def __call__(self, text: str) -> str:
        """Return the changed text."""
        return self.pattern.sub(self.replacement, text)

    def expand(self, match: re.Match[str]) -> str:
        """Return the replacement of a match."""
        return match.expand(self.replacement) if isinstance(self.replacement, str) else self.replacement(match)


@dataclass(frozen=True)
class TracedText:
    """A changed text, with the span of the original text that each of its characters represents."""

    text: str
    spans: Sequence[Span]

    @classmethod
    def original(cls, text: str) -> "TracedText":
        """Trace a text that no rule has changed yet."""
        return cls(text, [(index, index + 1) for index in range(len(text))])

    def substituted(self, substitution: Substitution) -> "TracedText":
        """Return the text after a substitution.

        A match and its replacement may begin or end with the same characters, apart from case and the kind of white
        space; these characters keep their spans. The rest of the replacement represents the rest of the match, or the
        next character if the match has no rest. White space around the rest of the replacement represents no text.
        """
        parts: list[str] = []
        spans: list[Span] = []
        done = 0
        for match in substitution.pattern.finditer(self.text):
            begin, end = match.span()
            replacement = substitution.expand(match)
            head = _common(match[0], replacement)
            tail = _common(match[0][head:][::-1], replacement[head:][::-1])
            parts += [self.text[done:begin], replacement]
            spans += self.spans[done : begin + head]
            spans += self._spans_of(replacement[head : len(replacement) - tail], begin + head, end - tail)
            spans += self.spans[end - tail : end]
            done = end
        if not parts:
            return self
        return TracedText("".join([*parts, self.text[done:]]), [*spans, *self.spans[done:]])

    def lowered(self) -> "TracedText":
        """Return the text in lower case. One character may become several."""
        spans = [span for character, span in zip(self.text, self.spans, strict=True) for _ in character.lower()]
        return TracedText(self.text.lower(), spans)

    def stripped(self) -> "TracedText":
        """Return the text without white space at its ends."""
        begin = len(self.text) - len(self.text.lstrip())
        text = self.text.strip()
        return TracedText(text, self.spans[begin : begin + len(text)])

    def prefixed(self, prefix: str) -> "TracedText":
        """Return the text after a prefix that represents no text."""
        return TracedText(prefix + self.text, [*[(0, 0)] * len(prefix), *self.spans])

    def span(self, begin: int, end: int) -> Span:
        """Return the span of the original text that the characters from `begin` to `end` (exclusive) represent."""
        if begin < end:
            return self.spans[begin][0], self.spans[end - 1][1]
        return self.spans[begin] if begin < len(self.spans) else (0, 0)

    def _spans_of(self, replacement: str, begin: int, end: int) -> list[Span]:
        """Return the spans of a replacement's characters, which represent the characters from `begin` to `end`."""
        span = first, last = self.span(begin, end)
        word = replacement.strip()
        if not word:
            return [span] * len(replacement)
        before = len(replacement) - len(replacement.lstrip())
        after = len(replacement) - before - len(word)
        behind = last if begin < end else first
        return [*[(first, first)] * before, *[span] * len(word), *[(behind, behind)] * after]


def _common(first: str, second: str) -> int:
    """Count the characters at the beginning of two strings that are alike."""
    return sum(1 for _ in takewhile(_are_alike, zip(first, second, strict=False)))


def _are_alike(characters: tuple[str, str]) -> bool:
    """Return whether two characters differ only in case, or are both white space."""
    first, second = characters
    return first.casefold() == second.casefold() or (first.isspace() and second.isspace())
