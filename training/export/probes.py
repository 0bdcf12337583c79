"""Probe texts, on which a model is tested without data: sentences, and texts of the vocabulary's words."""

import random
from collections.abc import Sequence

from handler.exported import ExportedModel
from handler.tokens import TokenizerConfig

SENTENCES = (
    "This is a GREAT example!!!",
    "@someone why does number 1234 take so looooong?? http://example.com/x1Y2?a=b#c #fail :-(",
    "we weren't told -- nobody's there; the U.S. half &amp; me (both) won't ask, 50% or $3.50,<br />10am or <b>no</b>",
    "good good good good, \u00fcber caf\u00e9 \U0001f600\u2708\ufe0f\U0001f44d\U0001f3fd \u4f60\u597d \uc548\ub155",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947",
    "I",
)
"""Sentences for the rules of a tokenizer, without a domain.

They have capitals, repetitions, HTML entities and tags, addresses, numbers, emoji, contractions, unknown words, other
scripts, and a single letter.
"""


def probes(model: ExportedModel) -> list[str]:
    """Make the probe texts of a model.

    The lengths of the texts of words are close to those at which a network starts a new chunk or stops pooling all
    outputs.
    """
    network = model.config.network
    chunk, pooled = network.chunk_tokens, network.pooled_tokens
    lengths = {1, 2, 20, chunk - 1, chunk, chunk + 1, 2 * chunk + 1}
    if pooled is not None:
        # If less than a chunk is pooled, fastai cannot predict longer texts.
        lengths = lengths | {pooled + chunk + 1} if pooled >= chunk else {n for n in lengths if n < pooled}
    generator = random.Random(1)
    # SentencePiece marks the first token of a word.
    tokens = [token.removeprefix("\u2581") for token in model.vocabulary if token]
    words = [token for token in tokens if token.isalpha() and not token.startswith("xx")]
    texts = (" ".join(_words(words, length, generator)) for length in sorted(lengths))
    return [*SENTENCES, *texts, *_special_cases(model.config.tokenizer, max(max(lengths, default=8) // 8, 1))]


def _special_cases(tokenizer: TokenizerConfig, words: int) -> list[str]:
    """Make texts of the special cases of the model's own rules; each special case has fewer than eight tokens."""
    if tokenizer.spacy_rules is None:
        return []
    known = tokenizer.spacy_rules.special_cases
    cases = [case for case in known if case.split() == [case] and case not in tokenizer.special_tokens]
    return [" ".join(cases[start : start + words]) for start in range(0, len(cases), words)]


def _words(known: Sequence[str], count: int, generator: random.Random) -> list[str]:
    """Draw words; every fifth word is unknown, and some are in capitals."""
    words = [generator.choice(known) if known and place % 5 else f"qz{place}" for place in range(1, count + 1)]
    return [word.upper() if place % 7 == 3 else word for place, word in enumerate(words)]
