"""The transformer that helps in training: words, texts, and that it stays out of what is served."""

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
    vectors = word_vectors(["a", "b", "c", "flight"], 300)
    assert vectors.shape == (4, 300)
    assert vectors.isfinite().all()


def test_emoji_are_written_as_their_names() -> None:
    assert to_plain_text("ok 😡 &amp; http://t.co/x").split() == ["ok", "pouting", "face", "&", "http"]


def test_a_texts_answer_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    teacher = TransformerClassifier(3)
    texts = ["late", "Thank you so much for the quick help with my lost bag!", ""]
    together, features = teacher.predict(texts)
    alone = torch.cat([teacher.predict([text])[0] for text in texts])
    torch.testing.assert_close(together, alone, atol=0.02, rtol=0)  # bfloat16
    assert features.shape == (3, 384)


def test_it_is_not_served() -> None:
    served = (ROOT / "requirements" / "serve.lock").read_text()
    assert "transformers" not in served
    assert "minilm" not in served
    for path in (ROOT / "handler").glob("*.py"):
        assert "transformers" not in path.read_text()
