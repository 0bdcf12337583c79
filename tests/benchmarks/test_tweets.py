"""Tests of `benchmarks.tweets`: the texts that are sent to the servers."""

from benchmarks.tweets import rare_words, with_new_words

TEXTS = ["late again at gate B12!", "late again", "see http://t.co/aB3dE9, now  at gate", "now"]


def test_rare_words_are_in_one_text_only() -> None:
    assert rare_words(TEXTS) == {"B12!", "see", "http://t.co/aB3dE9,"}


def test_only_rare_words_change_into_words_of_the_same_form() -> None:
    rare = rare_words(TEXTS)
    texts = with_new_words(TEXTS, rare, 400)
    assert len(texts) == 400
    for text, original in zip(texts, TEXTS * 100, strict=True):
        for word, original_word in zip(text.split(" "), original.split(" "), strict=True):
            assert word == original_word if original_word not in rare else len(word) == len(original_word)
    addresses = [text.split(" ")[1] for text in texts[2::4]]
    assert all(address.startswith("http://t.co/aB3") and address[-4:-1].isalnum() for address in addresses)
    assert len(set(addresses)) > 90


def test_the_synthetic_texts_are_reproducible() -> None:
    assert with_new_words(TEXTS, {"see"}, 9) == with_new_words(TEXTS, {"see"}, 9)
