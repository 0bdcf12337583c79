"""Texts that a model is tried on where there is no data: sentences, and the vocabulary's words in many lengths."""

import random
from collections.abc import Sequence

from handler.exported import ExportedModel
from handler.tokens import TokenizerConfig

SENTENCES = (
    "Thank you for the GREAT flight!!!",
    "@airline why is flight 1234 so looooong late?? http://t.co/x1Y2 #fail",
    "we weren't told -- nobody's there; the U.S. crew &amp; me (both) won't rebook, 50% off or not",
    "good good good good, \u00fcber caf\u00e9 \U0001f600\u2708 \u4f60\u597d",
)


def probes(model: ExportedModel) -> list[str]:
    """Texts around the lengths at which a network reads on in another chunk, and no longer pools all."""
    network = model.config.network
    chunk, pooled = network.chunk_tokens, network.pooled_tokens
    lengths = {1, 2, 20, chunk - 1, chunk, chunk + 1, 2 * chunk + 1}
    if pooled is not None:
        # Where less than a chunk is pooled, fastai has no answer for longer texts.
        lengths = lengths | {pooled + chunk + 1} if pooled >= chunk else {n for n in lengths if n < pooled}
    generator = random.Random(1)
    # SentencePiece marks the beginning of a word.
    tokens = [token.removeprefix("\u2581") for token in model.vocabulary if token]
    words = [token for token in tokens if token.isalpha() and not token.startswith("xx")]
    texts = (" ".join(_words(words, length, generator)) for length in sorted(lengths))
    return [*SENTENCES, *texts, *_special_cases(model.config.tokenizer, max(max(lengths, default=8) // 8, 1))]


def _special_cases(tokenizer: TokenizerConfig, words: int) -> list[str]:
    """Texts of the words that a model's own rules split in a way of their own, each into less than eight tokens."""
    if tokenizer.spacy_rules is None:
        return []
    known = tokenizer.spacy_rules.special_cases
    cases = [case for case in known if case.split() == [case] and case not in tokenizer.special_tokens]
    return [" ".join(cases[start : start + words]) for start in range(0, len(cases), words)]


def _words(known: Sequence[str], count: int, generator: random.Random) -> list[str]:
    """Every fifth one unknown, and some in capitals."""
    words = [generator.choice(known) if known and place % 5 else f"qz{place}" for place in range(1, count + 1)]
    return [word.upper() if place % 7 == 3 else word for place, word in enumerate(words)]
