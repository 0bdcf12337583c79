"""Settings of a training run: a frozen dataclass for each stage, the presets, and the precisions of an archive.

The option `--preset` chooses a preset, `--set STAGE.NAME=VALUE` changes a setting. The record of each stage
(`record.json`) has the settings that were used.
"""

from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, get_args

from training.errors import TrainingError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Precision = Literal["int8", "int8-fine", "float32"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
"""Precisions of the network in an archive; see `training.export.graph`."""

MAX_DIFFERENCE: Final = 0.03
"""Maximum difference of a probability from float32 that `archive` accepts."""

MINILM, MPNET = "all-MiniLM-L6-v2", "all-mpnet-base-v2"
"""Transformers whose weights are in Python packages; see `training.stages.transformer`."""

WT103 = "wt103"
"""fastai's name for its language model of WikiText-103."""


@dataclass(frozen=True)
class GeneralSettings:
    """Settings of stage 1, the general language model (ULMFiT, section 3.1)."""

    seed: int = 1
    embedding_size: int = 300
    hidden_size: int = 600
    layers: int = 2
    word_vectors: float = 0.1
    """Scale of the transformer's word vectors that initialize the embeddings; 0: fastai's random initialization."""

    min_frequency: int = 3
    max_vocabulary: int = 20_000
    epochs: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.2
    batch_size: int = 32
    sequence_length: int = 48


@dataclass(frozen=True)
class LanguageModelSettings:
    """Settings of stage 2, the language model on the data (section 3.2): embeddings train first, then all layers."""

    seed: int = 1
    min_frequency: int = 2
    max_vocabulary: int = 20_000
    frozen_epochs: int = 0
    frozen_learning_rate: float = 4e-3
    epochs: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.5
    batch_size: int = 32
    sequence_length: int = 48


@dataclass(frozen=True)
class TeacherSettings:
    """Settings of a teacher: a fine-tuned transformer."""

    seed: int = 1
    epochs: int = 2
    learning_rate: float = 3e-5
    weight_decay: float = 0.01
    batch_size: int = 32
    max_pieces: int = 96
    """Maximum number of word pieces of a text that the transformer reads; a tweet has about 30."""


@dataclass(frozen=True)
class DistilSettings:
    """Settings of the distillation between stages 2 and 3, which trains the encoder on the teacher's outputs."""

    seed: int = 1
    frozen_epochs: int = 0
    frozen_learning_rate: float = 5e-3
    epochs: int = 1
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.2
    label_weight: float = 0.5
    """Share of the label in the target of a labelled text; the rest is the teacher's prediction."""

    feature_weight: float = 1.0
    """Weight of the teacher's pooled output in the loss; the weight of its probabilities is 1."""

    batch_size: int = 128


@dataclass(frozen=True)
class FrozenTeacherSettings:
    """Settings of a frozen teacher: a transformer that is not fine-tuned, with logistic regression over its output."""

    seed: int = 1
    max_pieces: int = 96
    """Maximum number of word pieces of a text that the transformer reads."""


@dataclass(frozen=True)
class LabelledDistilSettings(DistilSettings):
    """Settings of a distillation from a teacher of the data's labels, on the train split, its spans and other texts."""

    pieces: int = 12
    """Number of spans of each text; their targets are the teacher's predictions."""

    tfidf_weight: float = 0.0
    """Share of TF-IDF with logistic regression in the teachers' predictions; the rest is the transformer's."""


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of the generator, a language model of the labelled texts that writes further texts."""

    seed: int = 1
    epochs: int = 3
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    drop_mult: float = 0.3
    batch_size: int = 32
    sequence_length: int = 48
    texts: int = 60_000
    """Number of texts to write; 0: the classifier learns from no generated text."""

    top_p: float = 0.95
    """A token is drawn from the most probable ones, whose probabilities sum to this share."""

    temperature: float = 1.0
    """Number by which the logits are divided before a token is drawn."""


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of stage 3, the classifier (section 3.3): gradual unfreezing, one more layer group in each phase.

    The learning rate falls from the head to the embedding, where it is the head's divided by `decay_per_group` to the
    power of four. ULMFiT has five groups and divides by 2.6: teachers' predictions for many texts teach more and
    overfit less.
    """

    seed: int = 2
    """Seed of the embedded model's classifier; `docs/EXPERIMENTS.md` has others."""

    frozen_epochs: int = 1
    frozen_learning_rate: float = 1e-2
    last_two_epochs: int = 0
    last_two_learning_rate: float = 5e-3
    last_three_epochs: int = 0
    last_three_learning_rate: float = 3e-3
    epochs: int = 3
    learning_rate: float = 2e-3
    decay_per_group: float = 1.3
    weight_decay: float = 0.05
    max_gradient_norm: float = 0.5
    """Norm to which longer gradients are clipped; most are shorter. Without clipping, one training of six diverged."""

    drop_mult: float = 0.3
    label_weight: float = 0.6
    """Share of the label in the target of a labelled text; the rest is the teachers' prediction."""

    tfidf_weight: float = 0.3
    """Share of TF-IDF with logistic regression in the teachers' predictions; the rest is the transformers'."""

    label_smoothing: float = 0.1
    """Share of the uniform distribution in the target of a labelled text, if there is no teacher."""

    use_confidence: int = 1
    """1: the label's share is multiplied by `airline_sentiment_confidence`, the agreement of its annotators."""

    pieces: int = 6
    """Number of spans of each text that are training texts, too, if there is a teacher."""

    made_up_texts: int = 15_000
    """Number of synthetic training texts (`training.stages.augmentation`)."""

    batch_size: int = 64


@dataclass(frozen=True)
class Settings:
    """Settings of a run. The defaults are the preset `default`, with which the embedded model was trained."""

    general: GeneralSettings = field(default_factory=GeneralSettings)
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    general_teacher: TeacherSettings = field(default_factory=lambda: TeacherSettings(epochs=1, learning_rate=1e-4))
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    distil: DistilSettings = field(default_factory=DistilSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    classifier: ClassifierSettings = field(
        # Generated texts can be learned longer than labelled ones before the network overfits.
        default_factory=lambda: ClassifierSettings(epochs=5, learning_rate=3e-3, weight_decay=0.01, batch_size=128)
    )
    start: str = "model_store/general"
    """Initial weights of `all` if no option names them: the folder of an exported model, or `WT103`."""

    general_transformer: str = MINILM
    """Transformer of the general teacher, if no option names one."""

    transformers: tuple[str, ...] = (MPNET, MINILM)
    """Transformers of the teachers, if no option names one."""


PRESETS: dict[str, Settings] = {
    "default": Settings(),
    "ulmfit": Settings(
        general=GeneralSettings(
            embedding_size=400,
            hidden_size=1152,
            layers=3,
            epochs=3,
            learning_rate=2e-3,
            batch_size=64,
            sequence_length=72,
        ),
        language_model=LanguageModelSettings(epochs=2),  # small batches, as the data is small
        distil=DistilSettings(epochs=3),
        classifier=ClassifierSettings(batch_size=128),
        start=WT103,
    ),
    "tiny": Settings(
        general=GeneralSettings(
            embedding_size=16, hidden_size=24, layers=2, min_frequency=1, batch_size=4, sequence_length=8
        ),
        language_model=LanguageModelSettings(
            min_frequency=1, frozen_epochs=1, epochs=2, batch_size=4, sequence_length=8
        ),
        general_teacher=TeacherSettings(epochs=1, batch_size=8),
        teacher=TeacherSettings(epochs=1, batch_size=8),
        distil=DistilSettings(batch_size=8),
        generator=GeneratorSettings(epochs=1, batch_size=4, sequence_length=8, texts=6),
        classifier=ClassifierSettings(epochs=2, last_two_epochs=1, last_three_epochs=1, batch_size=8, made_up_texts=12),
        transformers=(MINILM,),
    ),
}

PRESET_HELP = {
    "default": "300/600/2 (embedding, hidden, layers), for two cores",
    "ulmfit": "400/1152/3, the sizes of ULMFiT and of fastai's wt103, for a GPU",
    "tiny": "16/24/2, for tests, trains in seconds",
}
"""Descriptions of the presets for `--help`."""


RECIPES = {
    "run": "the stages of the run",
    "teacher": "the first transformer alone",
    "teachers": "the transformers and TF-IDF, which teach the classifier",
    "majority": "the most frequent label for every text",
    "tfidf": "TF-IDF with logistic regression",
    "language-model": "ULMFiT: the encoder of the language model, without a teacher",
    "distil": "the encoder of the distillation, without a teacher",
}
"""Descriptions of the recipes of `cross-validate`."""


AnySettings = TypeVar("AnySettings", bound="DataclassInstance")
"""`Settings`, or those of `training.fit.recipe`: a dataclass with a field for each stage."""

AT_LEAST_ONE = {
    "embedding_size",
    "hidden_size",
    "layers",
    "min_frequency",
    "max_vocabulary",
    "batch_size",
    "sequence_length",
    "decay_per_group",
}
"""Names of the settings that are at least 1."""

ABOVE_ZERO = {"temperature", "top_p", "max_gradient_norm"}
"""Names of the settings that are above 0."""

AT_MOST = {
    "label_weight": 1,
    "tfidf_weight": 1,
    "label_smoothing": 1,
    "use_confidence": 1,
    "top_p": 1,
    "drop_mult": 2,
    "seed": 2**32 - 1,
}
"""Upper bounds of settings: shares, the factor of fastai's dropout probabilities, which are 0.5 at most, and NumPy's
largest seed."""


def with_changes(settings: AnySettings, changes: list[str]) -> AnySettings:
    """Apply changes of the form `STAGE.NAME=VALUE`.

    Raises:
        TrainingError: a name is unknown, or a value has the wrong type or is out of bounds.
    """
    for change in changes:
        key, _, value = change.partition("=")
        stage_name, _, name = key.partition(".")
        stage: Any = getattr(settings, stage_name, None)
        types = {option.name: option.type for option in fields(stage)} if is_dataclass(stage) else {}
        if name not in types or not value:
            known = [
                f"{part.name}.{option.name}"
                for part in fields(settings)
                if is_dataclass(stage_settings := getattr(settings, part.name))
                for option in fields(stage_settings)
            ]
            similar = [] if key in known else get_close_matches(key, known, n=1)
            hint = f" Did you mean {similar[0]}?" if similar else ""
            raise TrainingError(
                f"--set {change}: expected STAGE.NAME=VALUE.{hint} STAGE.NAME is one of {', '.join(known)}."
            )
        kind: Any = types[name]
        try:
            number = kind(value)
        except ValueError as error:
            raise TrainingError(f"--set {change}: expected a value of type {kind.__name__}.") from error
        least, most = int(name in AT_LEAST_ONE), AT_MOST.get(name, float("inf"))
        if not least <= number <= most or number in (float("inf"), 0 if name in ABOVE_ZERO else None):
            lower = "above 0" if name in ABOVE_ZERO else f"of at least {least}"
            raise TrainingError(
                f"--set {change}: expected a number {lower}{f' and at most {most}' if name in AT_MOST else ''}."
            )
        settings = replace(settings, **{stage_name: replace(stage, **{name: number})})
    return settings
