"""Where the characters of a changed text come from.

Before a text is split into tokens, rules change it: `Great` becomes `xxmaj great`. `TracedText` applies the same
changes and keeps the span of the original text that each character stands for, so that a token can be shown where it is
in the text that the user wrote.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

Span = tuple[int, int]
"""Where a part of a text begins and where it ends (exclusive), in characters (code points)."""


@dataclass(frozen=True)
class Substitution:
    """A change of every match of a pattern, as `re.sub` makes it."""

    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    """A template of `re.sub`, or what makes the new part of a match."""

    def __call__(self, text: str) -> str:
        """The changed text."""
        return self.pattern.sub(self.replacement, text)

    def new_part(self, match: re.Match[str]) -> str:
        """The replacement of a match."""
        return match.expand(self.replacement) if isinstance(self.replacement, str) else self.replacement(match)


@dataclass(frozen=True)
class TracedText:
    """A text, and for each of its characters the span of the original text that the character stands for."""

    text: str
    spans: Sequence[Span]

    @classmethod
    def of(cls, text: str) -> "TracedText":
        """A text that no rule has changed yet."""
        return cls(text, [(index, index + 1) for index in range(len(text))])

    def substituted(self, substitution: Substitution) -> "TracedText":
        """The text after a substitution.

        Characters that a match and its new part share at their ends, apart from case and the kind of white space, keep
        their spans. The rest of the new part stands for the rest of the match; if nothing of the match is left, for the
        character that follows. White space around it stands for nothing.
        """
        parts: list[str] = []
        spans: list[Span] = []
        done = 0
        for match in substitution.pattern.finditer(self.text):
            begin, end = match.span()
            new = substitution.new_part(match)
            head = _common(match[0], new)
            tail = _common(match[0][head:][::-1], new[head:][::-1])
            parts += [self.text[done:begin], new]
            spans += self.spans[done : begin + head]
            spans += self._spans_of(new[head : len(new) - tail], begin + head, end - tail)
            spans += self.spans[end - tail : end]
            done = end
        if not parts:
            return self
        return TracedText("".join([*parts, self.text[done:]]), [*spans, *self.spans[done:]])

    def lowered(self) -> "TracedText":
        """The text in lower case, where a character may have become several."""
        spans = [span for character, span in zip(self.text, self.spans, strict=True) for _ in character.lower()]
        return TracedText(self.text.lower(), spans)

    def stripped(self) -> "TracedText":
        """The text without white space at its ends."""
        begin = len(self.text) - len(self.text.lstrip())
        text = self.text.strip()
        return TracedText(text, self.spans[begin : begin + len(text)])

    def after(self, text: str) -> "TracedText":
        """The text with another one before it, which stands for nothing."""
        return TracedText(text + self.text, [*[(0, 0)] * len(text), *self.spans])

    def of_tokens(self, tokens: Sequence[str]) -> list[Span]:
        """The span of the original text that each token stands for.

        Args:
            tokens: tokens of the changed text, in their order, with nothing but white space between them.
        """
        found = []
        end = 0
        for token in tokens:
            begin = self.text.index(token, end)
            end = begin + len(token)
            found.append(self._span(begin, end))
        return found

    def of_ranges(self, ranges: Iterable[Span]) -> list[Span]:
        """The span of the original text that each part of the changed text stands for, given where it begins and
        ends."""
        return [self._span(begin, end) for begin, end in ranges]

    def _spans_of(self, new: str, begin: int, end: int) -> list[Span]:
        """The spans of a new part's characters, which stand for the characters from `begin` to `end`."""
        span = first, last = self._span(begin, end)
        word = new.strip()
        if not word:
            return [span] * len(new)
        before = len(new) - len(new.lstrip())
        after = len(new) - before - len(word)
        behind = last if begin < end else first
        return [*[(first, first)] * before, *[span] * len(word), *[(behind, behind)] * after]

    def _span(self, begin: int, end: int) -> Span:
        if begin < end:
            return self.spans[begin][0], self.spans[end - 1][1]
        return self.spans[begin] if begin < len(self.spans) else (0, 0)


def _common(first: str, second: str) -> int:
    """Number of characters at the beginning of two strings that are alike."""
    return sum(1 for _ in takewhile(_are_alike, zip(first, second, strict=False)))


def _are_alike(characters: tuple[str, str]) -> bool:
    """Whether two characters differ in case alone, or are both white space."""
    first, second = characters
    return first.casefold() == second.casefold() or (first.isspace() and second.isspace())
