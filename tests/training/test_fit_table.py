"""Tests of a user's labelled texts: errors of labels and splits name the line and a remedy."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data import copies_of, read_tweets
from training.errors import TrainingError
from training.fit.split import with_splits, write_data
from training.fit.table import Columns, read_table

ROWS = [(f"text number {number}, said with care", ("good", "bad")[number % 2]) for number in range(40)]


def csv_of(rows: list[tuple[str, str]], delimiter: str = ",") -> str:
    quoted = [f'"{text}"{delimiter}{label}\n' for text, label in rows]
    return f"text{delimiter}label\n" + "".join(quoted)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_labels_of_any_type_become_strings(tmp_path: Path) -> None:
    kinds = [0, 1.0, True, " two  words ", 1.5]
    lines = [json.dumps({"text": f"text {number}", "label": kinds[number % 5]}) for number in range(40)]
    rows = read_table(write(tmp_path, "a.jsonl", "\n".join(lines)), Columns()).rows
    assert list(rows["label"][:5]) == ["0", "1", "true", "two words", "1.5"]


def test_numbers_are_read_alike_from_all_formats(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": [number / 4 for number in range(1, 61)], "label": [1.5, 2.25, -3.5] * 20})
    table = table[table["text"] % 1 != 0]  # CSV writes 1.0, which may be a version
    table.to_csv(tmp_path / "a.csv", index=False)
    table.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "a.parquet")
    in_csv, *others = (read_table(tmp_path / f"a.{kind}", Columns()).rows for kind in ("csv", "jsonl", "parquet"))
    assert set(in_csv["label"]) == {"1.5", "2.25", "-3.5"}
    for other in others:
        assert other[["text", "label"]].equals(in_csv[["text", "label"]])


GOOD = csv_of(ROWS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", csv_of(ROWS[:9]), "has 9 rows; training and evaluation need at least 30"),
        ("a.csv", GOOD + '"",bad\n', "line 42: A row has no text"),
        ("a.csv", GOOD + "a,\nb, \n", "line 42, 43: 2 rows have no valid label"),
        ("a.csv", GOOD + "a,odd\n", "'odd' line 42. Are they typing errors"),
        ("a.csv", GOOD.replace(",good", ",bad"), "has one label, 'bad', in all 40 rows"),
        (
            "a.csv",
            GOOD + '"open,bad\nshut,good\nlast",bad\n',
            "line 42 has a quoted field that contains other rows: line 42, 'open,bad'",
        ),
        ("a.csv", GOOD + "a" * 20_001 + ",bad\n", "line 42: A row has a text of more than 20,000 characters"),
        ("a.jsonl", '{"text": [1], "label": "b"}\n' * 40, "line 1, 2, 3, 4, 5 and 35 more: 40 rows have no text"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n' * 40, "40 rows have no valid label"),
        ("a.jsonl", '{"text": "a", "label": ["b"]}\n' * 40, "(column `label`). `fit` trains one label for each text"),
        ("a.csv", csv_of([(f"t {n}", f"l{n // 3}") for n in range(900)]), "has 300 different labels, for example"),
    ],
)
def test_an_error_names_the_line_and_a_remedy(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(TrainingError) as error:
        read_table(write(tmp_path, name, content), Columns())
    assert message in str(error.value)


def test_problems_that_do_not_prevent_training_are_warnings(tmp_path: Path) -> None:
    rows = [*ROWS * 2, ("The same!", "good"), ("the same", "bad"), *((f"x {n}", "Good ") for n in range(5))]
    few, alike, different = read_table(write(tmp_path, "a.csv", csv_of(rows)), Columns()).warnings
    assert "'Good' 5" in few
    assert "'Good' and 'good'" in alike
    assert different.startswith("2 rows have nearly the same text as a row with another label, line 82, 83: ")
    rows[80:82] = [("the same", "good"), ("the same", "bad")]
    *_, different = read_table(write(tmp_path, "a.csv", csv_of(rows)), Columns()).warnings
    assert different.startswith("2 rows have the same text as a row with another label")


def test_labels_that_look_the_same_are_told_apart(tmp_path: Path) -> None:
    rows = [(f"{label} {number} times", label) for label in ("caf\u00e9", "cafe\u0301") for number in range(20)]
    warnings = read_table(write(tmp_path, "a.csv", csv_of(rows)), Columns()).warnings
    assert any(r"different labels: 'cafe\u0301' and 'caf\xe9'" in warning for warning in warnings), warnings


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("today \U0001f621", "today \U0001f600"),
        ("today :)", "today :("),
        ("\u0915\u093f", "\u0915\u0940"),  # Hindi, ki and kii
        ("\u0915\u092e\u0940", "\u0915\u0940\u092e"),
        ("\u0e44\u0e01\u0e48", "\u0e44\u0e01\u0e49"),  # Thai, two tones
        ("C++", "C#"),
        ("C++", "C"),
        ("5 degrees", "-5 degrees"),
        ("1.5 stars", "15 stars"),
        ("5%", "5"),
        ("it costs $5", "it costs \u20ac5"),
        ("!", "?"),
    ],
)
def test_texts_with_different_meanings_are_not_copies(text: str, other: str) -> None:
    first, second = copies_of(pd.Series([text, other]))
    assert first != second


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Late, again!", "late again"),
        ("great \U0001f600\U0001f600", "\U0001f600 Great!"),
        ("love \u2764\ufe0f", "love \u2764"),
        ("thanks:)", "Thanks :)"),
        ("caf\u00e9", "cafe\u0301"),
        ("well-known (really)", "well known - really"),
    ],
)
def test_copies_differ_in_signs_without_a_meaning(text: str, other: str) -> None:
    first, second = copies_of(pd.Series([text, other]))
    assert first == second


def test_the_order_of_the_keys_is_that_of_letters_and_digits() -> None:
    """The split of a file does not depend on whether one of its texts has a symbol."""
    texts = pd.Series(["a b \U0001f600", "a", "ab c", "a-c", "5%", "5a"])
    letters = texts.str.replace(r"\W+", "", regex=True)
    assert list(copies_of(texts).sort_values().index) == list(letters.sort_values().index)


@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ("\u8fd9\u4e2a\u5f88\u597d", True),
        ("\u043e\u0447\u0435\u043d\u044c \u0445\u043e\u0440\u043e\u0448\u043e", True),
        ("tr\u00e8s bien, na\u00efve \u0142\u00f3dka", False),
        ("the \u8fd9 \U0001f600", False),
        ("24/7 \U0001f600", False),
    ],
)
def test_texts_that_are_not_english_are_a_warning(text: str, is_warned: bool, tmp_path: Path) -> None:
    rows = [(f"{text} {number}", label) for number, (_, label) in enumerate(ROWS)]
    warnings = read_table(write(tmp_path, "a.csv", csv_of(rows)), Columns()).warnings
    warned = any("most letters of the texts are not Latin. `fit` is made for English" in each for each in warnings)
    assert warned == is_warned, warnings


def test_labels_that_list_other_labels_are_a_warning(tmp_path: Path) -> None:
    kinds = ("good", "bad", "good;cheap", "yes, but")
    rows = [(text, f'"{kinds[number % 4]}"') for number, (text, _) in enumerate(ROWS * 2)]
    rows = [(f"{text} {number}", label) for number, (text, label) in enumerate(rows)]
    [warning] = read_table(write(tmp_path, "a.csv", csv_of(rows)), Columns()).warnings
    assert warning.startswith("labels that list other labels are trained as labels of their own: 'good;cheap'. `fit`")


def test_text_and_label_need_different_columns(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="expected different columns"):
        read_table(write(tmp_path, "a.csv", GOOD), Columns("text", "text"))


def test_a_text_that_only_looks_like_rows_is_a_text(tmp_path: Path) -> None:
    poem = 'Roses, good\nViolets, blue\nand "quoted", too\r\nthe end'
    content = csv_of(ROWS) + '"' + poem.replace('"', '""') + '",good\n'
    assert read_table(write(tmp_path, "a.csv", content), Columns()).rows["text"].iloc[-1] == poem


def test_the_split_is_stratified_and_keeps_copies_together() -> None:
    rows = pd.DataFrame(
        [(f"text {n % 500}{'!' * (n // 500)}", "common" if n % 500 < 450 else "rare") for n in range(800)],
        columns=["text", "label"],
    ).assign(line=0)
    split = with_splits(rows)
    assert with_splits(rows)["split"].equals(split["split"]), "it is seeded"
    assert split.groupby(copies_of(split["text"]))["split"].nunique().max() == 1
    texts = split.drop_duplicates("text")[:500]
    for label, count in (("common", 45), ("rare", 5)):
        splits = texts[texts["label"] == label]["split"].value_counts()
        assert (splits["validation"], splits["test"]) == (count, count), label


def test_a_files_own_splits_are_kept(tmp_path: Path) -> None:
    names = ["Train", "training", "train", "dev", "test"]
    lines = [
        json.dumps({"text": f"t {n}", "label": str(n // 5 % 2), "fold": names[n % 5], "x": None}) for n in range(50)
    ]
    table = read_table(write(tmp_path, "a.jsonl", "\n".join(lines)), Columns(split="fold"))
    assert list(with_splits(table.rows)["split"][:5]) == ["train", "train", "train", "validation", "test"]
    without = table.rows[table.rows["split"] != "validation"]
    assert set(with_splits(without)["split"]) == {"train", "validation", "test"}
    with pytest.raises(TrainingError, match="an unknown split "):
        read_table(write(tmp_path, "b.jsonl", "\n".join(lines).replace("dev", "fold 1")), Columns(split="fold"))
    with pytest.raises(TrainingError, match="no text with the label '1'"):
        with_splits(table.rows[(table.rows["label"] == "0") | (table.rows["split"] == "test")])


@settings(max_examples=15)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=30, max_size=40))
def test_the_data_of_a_run_is_read_back_unchanged(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    texts = [text if text.strip() else "blank" for text in texts]
    folder = tmp_path_factory.mktemp("run")
    rows = pd.DataFrame({"text": texts, "label": "NA", "split": "train", "line": 1})
    kept = write_data(rows, write(folder, "a.csv", "x"), {}, folder, folder / "model")
    read = read_tweets(kept)
    assert list(read["text"]) == texts
    assert set(read["label"]) == {"NA"}
    assert set(read["split"]) == {"train"}
    with pytest.raises(TrainingError, match="contains a run on other data"):
        write_data(rows.assign(label="other"), folder / "a.csv", {}, folder, folder / "model")
