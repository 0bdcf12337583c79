"""Stage `generator`: a language model learns the labelled texts and writes further texts of the same kind.

The classifier learns the teachers' predictions for these texts. Most of what separates a small network from its teacher
is the lack of such texts (Tang, Lu and Lin, "Natural Language Generation for Effective Knowledge Distillation",
DeepLo 2019, who generate them with a larger language model).

A document of the language model is a label, followed by a text. The generator continues the label and the first tokens
of a random text with that label, so that each label has as many texts as the others.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import pandas as pd
import torch
import torch.nn.functional as F
from fastai.text.all import defaults, tokenize_df
from torch import Tensor, nn
from tqdm import tqdm

from handler.tokens import BEGINNING, CAPITALIZED, PADDING, REPEATED_CHARACTER, REPEATED_WORD, UNKNOWN, UPPER_CASE
from training.data import labelled, sha256_of
from training.files import reading, write_text
from training.settings import GeneratorSettings
from training.stages.language_model import existing_encoder, language_model_of, sizes_of, streams
from training.stages.products import ENCODER_FILE, GENERATED_FILE, VOCABULARY_FILE
from training.stages.stage import Phase, Stage, load_tensors, load_vocabulary

SAMPLES_AT_ONCE: Final = 384
"""Number of texts that are generated together."""

PROMPT_TOKENS: Final = 2
"""Number of tokens of a real text, after its label, that a generated text begins with."""

MAX_TOKENS: Final = 60
"""Length of the longest generated text, with its label. A longer one is dropped."""

MIN_WORDS: Final = 3
"""Length of the shortest generated text."""

ROUND_TEXTS: Final = 10_000
"""Number of texts that are written to the file at once."""

MAX_SAMPLES_PER_TEXT: Final = 10
"""Number of samples for each new text after which a round ends, although texts are missing."""

DRAWS: Final = 3
"""Number of tokens that are drawn at once, of which the first that is probable enough is taken."""

MAX_REPETITIONS: Final = 8
"""Maximum number of equal characters or words in a row."""

MARKS: Final = {CAPITALIZED, UPPER_CASE}
REPETITIONS: Final = {REPEATED_CHARACTER, REPEATED_WORD}

_SPACED_URL = re.compile(r"(https?) ?: / / ?(\S+)(?: / (\w+)(?!\S))?(?: /)*")
_JOINS = (
    (re.compile(r"(?<=\d) ?([,:.]) (?=\d)"), r"\1"),
    (re.compile(r"(?<=\w) - (?=\w)"), "-"),
    (re.compile(r" (?=[,.!?;:)%]|n't|'(?:s|re|m|ll|ve|d)\b)"), ""),
    (re.compile(r"(?<=[@#($]) "), ""),
)


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document."""

    ids: tuple[int, ...]
    heading: int
    """Number of ids of `xxbos` and the label, which are not part of the text."""


def generate(
    data: pd.DataFrame, csv_sha256: str, *, encoder_folder: Path, settings: GeneratorSettings, folder: Path
) -> None:
    """Train the language model on the train split, and write texts.

    Writes a file with one text on each line. No text is a copy of a text of the data, compared by letters and digits.

    Args:
        data: the labelled texts (`training.data`). The validation split measures the language model.
        csv_sha256: SHA-256 of their file.
        encoder_folder: folder of the encoder to initialize from; its vocabulary is the language model's.
        settings: hyperparameters.
        folder: the stage's folder.

    Raises:
        TrainingError: there is no encoder, or there is too little text.
    """
    stage = Stage(folder, settings, generator_inputs(csv_sha256, encoder_folder))
    if not stage.begin():
        return
    rows = pd.concat([labelled(data, "train"), labelled(data, "validation")], ignore_index=True)
    documents = pd.DataFrame(
        {"text": rows["label"] + " " + rows["text"], "is_valid": (rows["split"] == "validation").to_numpy()}
    )
    vocabulary = load_vocabulary(encoder_folder / VOCABULARY_FILE)
    encoder = load_tensors(encoder_folder / ENCODER_FILE)
    sizes = sizes_of(encoder_folder / ENCODER_FILE, prefix="")
    learner = language_model_of(streams(documents, settings, vocab=vocabulary), sizes, settings.drop_mult)
    with reading(encoder_folder / ENCODER_FILE):
        learner.model[0].load_state_dict(encoder)
    stage.fit(learner, [Phase("all", settings.epochs, settings.learning_rate, 0)])
    network = _Network(learner.model, vocabulary)
    prompts = prompts_of(labelled(data, "train"), vocabulary)
    known = {_letters(text) for text in data["text"]}
    written = _write(folder / GENERATED_FILE, network, prompts, known, settings)
    if written < settings.texts:
        print(f"{folder}: {written:,} of {settings.texts:,} texts. Other samples were too long, too short, or copies.")
    stage.finish(texts=written)


def generator_inputs(csv_sha256: str, encoder_folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each input that determines the generated texts, for the stage's record.

    Raises:
        TrainingError: there is no encoder.
    """
    return {
        "data": csv_sha256,
        "encoder": sha256_of(existing_encoder(encoder_folder)),
        "vocabulary": sha256_of(encoder_folder / VOCABULARY_FILE),
    }


def prompts_of(rows: pd.DataFrame, vocabulary: Sequence[str]) -> list[list[Prompt]]:
    """Return the beginnings of the rows' documents, by label.

    Beginnings with unknown words are left out, unless all beginnings of the label have one.
    """
    ids = {token: index for index, token in enumerate(vocabulary)}
    unknown = ids[UNKNOWN]
    prompts = []
    for label, group in rows.groupby("label"):
        [heading] = _tokens([str(label)])
        found = [
            Prompt(tuple(ids.get(token, unknown) for token in [*heading, *tokens[1 : 1 + PROMPT_TOKENS]]), len(heading))
            for tokens in _tokens(list(group["text"]))
        ]
        prompts.append([prompt for prompt in found if unknown not in prompt.ids[len(heading) :]] or found)
    return prompts


def _tokens(texts: list[str]) -> list[list[str]]:
    table, _ = tokenize_df(pd.DataFrame({"text": texts}), "text", n_workers=0)
    return [list(tokens) for tokens in table["text"]]


def _write(
    file: Path, network: "_Network", prompts: list[list[Prompt]], known: set[str], settings: GeneratorSettings
) -> int:
    """Write the texts in rounds, each with a seed of its own, so that an interruption loses one round at most.

    Returns:
        the number of texts. A language model that repeats itself writes fewer than the settings ask for.
    """
    texts = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    known |= set(map(_letters, texts))
    first = -(-len(texts) // ROUND_TEXTS)
    with tqdm(total=settings.texts, initial=len(texts), unit="text", disable=None) as progress:
        for number in range(first, -(-settings.texts // ROUND_TEXTS)):
            wanted = min(ROUND_TEXTS, settings.texts - number * ROUND_TEXTS)
            new: list[str] = []
            samples = network.samples(prompts, settings, settings.seed + number)
            for text in filter(None, islice(samples, MAX_SAMPLES_PER_TEXT * wanted)):
                letters = _letters(text)
                if len(text.split()) >= MIN_WORDS and letters not in known:
                    known.add(letters)
                    new.append(text)
                    progress.update()
                if len(new) == wanted:
                    break
            texts += new
            write_text(file, "".join(f"{text}\n" for text in texts))
    return len(texts)


def _letters(text: str) -> str:
    """Return the letters and digits of a text, by which copies are recognized."""
    return re.sub(r"[\W_]", "", text.lower())


class _Network:
    """An AWD-LSTM language model in inference, which computes one token of many texts at a time.

    Args:
        model: fastai's `SequentialRNN` of a language model.
        vocabulary: its tokens.
    """

    def __init__(self, model: nn.Module, vocabulary: Sequence[str]) -> None:
        state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        self._vocabulary = vocabulary
        self._embeddings = state["0.encoder.weight"]
        self._bias = state["1.decoder.bias"].clone()
        for token in (UNKNOWN, PADDING):
            self._bias[vocabulary.index(token)] = -torch.inf
        self._beginning = vocabulary.index(BEGINNING)
        layers = sum(name.endswith("weight_hh_l0_raw") for name in state)
        self._layers = [
            (
                state[f"0.rnns.{layer}.module.weight_ih_l0"],
                state[f"0.rnns.{layer}.weight_hh_l0_raw"],
                state[f"0.rnns.{layer}.module.bias_ih_l0"] + state[f"0.rnns.{layer}.module.bias_hh_l0"],
            )
            for layer in range(layers)
        ]

    @torch.inference_mode()
    def samples(self, prompts: list[list[Prompt]], settings: GeneratorSettings, seed: int) -> Iterator[str | None]:
        """Generate texts without end; None for a text that is too long. A text that ends makes room for the next."""
        generator = torch.Generator().manual_seed(seed)
        choice = random.Random(seed)

        def prompt() -> Prompt:
            return choice.choice(choice.choice(prompts))

        begun = [prompt() for _ in range(SAMPLES_AT_ONCE)]
        rows = [list(one.ids) for one in begun]
        read = [0] * len(rows)
        hidden = [torch.zeros(len(rows), recurrent.shape[1]) for _, recurrent, _ in self._layers]
        cells = [torch.zeros_like(state) for state in hidden]
        while True:
            states = self._embeddings[torch.tensor([row[position] for row, position in zip(rows, read, strict=True)])]
            for layer, (weight, recurrent, bias) in enumerate(self._layers):
                gates = F.linear(states, weight, bias) + F.linear(hidden[layer], recurrent)
                entry, forget, candidate, output = gates.chunk(4, 1)
                cells[layer] = forget.sigmoid() * cells[layer] + entry.sigmoid() * candidate.tanh()
                states = hidden[layer] = output.sigmoid() * cells[layer].tanh()
            logits = F.linear(states, self._embeddings, self._bias) / settings.temperature
            drawn = draw(logits.softmax(1), settings.top_p, generator).tolist()
            for row, token in enumerate(drawn):
                read[row] += 1
                if read[row] < len(rows[row]):  # the prompt is not read yet
                    continue
                if token != self._beginning and len(rows[row]) < MAX_TOKENS:
                    rows[row].append(token)
                    continue
                is_whole = token == self._beginning
                yield to_text([self._vocabulary[i] for i in rows[row][begun[row].heading :]]) if is_whole else None
                begun[row] = prompt()
                rows[row], read[row] = list(begun[row].ids), 0
                for states in (*hidden, *cells):
                    states[row] = 0


def draw(probabilities: Tensor, top_p: float, generator: torch.Generator) -> Tensor:
    """Draw a token from each row of probabilities (B, V), among the most probable ones.

    These are the fewest tokens whose probabilities sum to at least `top_p` ("nucleus sampling": Holtzman et al., "The
    Curious Case of Neural Text Degeneration", ICLR 2020). Instead of sorting the tokens, a token is drawn from all of
    them, and accepted if the more probable ones sum to less than `top_p`. A row that accepts none of `DRAWS` draws gets
    its most probable token: with `top_p` 0.95, one row in 8,000.

    Returns:
        the tokens, (B,).
    """
    numbers = torch.rand(len(probabilities), DRAWS, generator=generator)
    drawn = torch.searchsorted(probabilities.cumsum(1), numbers).clamp(max=probabilities.shape[1] - 1)
    tokens = torch.empty(len(probabilities), dtype=torch.long)
    rows = torch.arange(len(probabilities))
    for draws in drawn.T:
        # Most rows accept their first draw. The later draws copy the few rows that are left, the first copies nothing.
        left = probabilities if len(rows) == len(probabilities) else probabilities[rows]
        chances = left.gather(1, draws[rows, None])
        accepted = torch.where(left > chances, left, 0).sum(1) < top_p
        tokens[rows[accepted]] = draws[rows[accepted]]
        rows = rows[~accepted]
    tokens[rows] = probabilities[rows].argmax(1)
    return tokens


def to_text(tokens: Sequence[str]) -> str:
    """Return a text whose tokens these are: fastai's text rules and spaCy's spaces, backwards, as far as possible."""
    words: list[str] = []
    mark = ""
    in_capitals = False  # a mark of capitals is for a whole word, which spaCy splits at its hyphens
    remaining = iter(tokens)
    for token in remaining:
        if token in MARKS:
            mark = token
        elif token in REPETITIONS:
            count, repeated = next(remaining, ""), next(remaining, "")
            if count.isdecimal() and repeated not in defaults.text_spec_tok:
                times = min(int(count), MAX_REPETITIONS)
                words.append(" ".join([repeated] * times) if token == REPEATED_WORD else repeated * times)
        elif token not in defaults.text_spec_tok:
            in_capitals = mark == UPPER_CASE or (in_capitals and "-" in (token, *words[-1:]))
            words.append(token.upper() if in_capitals else token.capitalize() if mark else token)
            mark = ""
    text = " ".join(" ".join(words).split())
    text = _SPACED_URL.sub(r"\1://\2/\3", text)
    for pattern, replacement in _JOINS:
        text = pattern.sub(replacement, text)
    return text
