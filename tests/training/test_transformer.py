"""The transformer that helps in training: words, texts, and that it stays out of what is served."""

import pytest
import torch

from tests.paths import ROOT
from training.transformer import TransformerClassifier, to_plain_text, word_vectors


def test_words_of_like_meaning_are_near() -> None:
    words = ["awful", "horrible", "luggage", "baggage", "thank", "pilot", "delay", "late", "the", "of", "😊"]
    vectors = torch.nn.functional.normalize(word_vectors(words, 8), dim=1)
    near = vectors @ vectors.T - 2 * torch.eye(len(words))
    assert words[int(near[0].argmax())] == "horrible"
    assert words[int(near[2].argmax())] == "baggage"


def test_vectors_have_the_size_asked_for_and_one_scale() -> None:
    words = ["a", "b", "late", "flight", "gate", "thanks", "😊", "hotel"]
    vectors = word_vectors(words, 300)
    assert vectors.shape == (len(words), 300)
    assert vectors[:6].std() == pytest.approx(1, abs=0.1)
    assert vectors[6].std() == pytest.approx(1, abs=0.2)  # unknown to the transformer, so random


def test_emoji_are_written_as_their_names() -> None:
    assert to_plain_text("ok 😡 &amp; http://t.co/x").split() == ["ok", "pouting", "face", "&", "http"]


def test_a_texts_features_do_not_depend_on_its_neighbours() -> None:
    teacher = TransformerClassifier(3)
    texts = ["late", "Thank you so much for the quick help with my lost bag!", "Which gate?"]
    probabilities, together = teacher.predict(texts)
    alone = torch.cat([teacher.predict([text])[1] for text in texts])
    similarity = torch.nn.functional.cosine_similarity(together[:, None], alone[None], dim=2)
    assert (similarity.diagonal() > 0.999).all()  # bfloat16
    assert (similarity - torch.eye(3)).max() < 0.8
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-5)


def test_it_is_not_served() -> None:
    served = (ROOT / "requirements" / "serve.lock").read_text()
    assert "transformers" not in served
    assert "minilm" not in served
    for path in (ROOT / "handler").glob("*.py"):
        assert "transformers" not in path.read_text()
