"""A recipe's YAML: what is typed is what is meant, and what can't be meant is refused."""

import math

import pytest
import yaml

from tiekd.config.recipe_yaml import dump, load, value

TEXTS = [
    "yes",
    "no",
    "on",
    "off",
    "Yes",
    "NO",
    "y",
    "n",
    "2024-01-01",
    "2024-01-01T10:00:00",
    "1:30",
    "1_000",
    "0b11",
    "1e3x",
    ".5.5",
    "-",
    "=",
    "0o8",
    "0xg",
    "e5",
    "+",
]
NUMBERS = {
    "3": 3,
    "-3": -3,
    "+3": 3,
    "010": 10,
    "0o17": 15,
    "0x1F": 31,
    "1e-3": 0.001,
    "1E3": 1000.0,
    "-1.5e+3": -1500.0,
    "1.": 1.0,
    ".5": 0.5,
    "-.inf": -math.inf,
}
WORDS = {"true": True, "False": False, "null": None, "NULL": None, "~": None, "": None}


@pytest.mark.parametrize("text", TEXTS)
def test_load_other_scalars_are_text(text):
    """A scalar that is no number, boolean or null is text, unlike in YAML 1.1."""
    assert load(f"{{a: {text}}}") == {"a": text}
    assert value(text) == text


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_load_numbers(text, number):
    """Integers and floats in every allowed notation have the right value and type."""
    found = load(f"a: {text}\n")["a"]
    assert (found, type(found)) == (number, type(number))
    assert (value(text), type(value(text))) == (number, type(number))


@pytest.mark.parametrize(("text", "word"), WORDS.items())
def test_load_booleans_and_null(text, word):
    """The words for true, false and null of the YAML 1.2 core schema are read."""
    assert load(f"a: {text}\n") == {"a": word}


def test_load_nan_needs_a_dot():
    """`.nan` is the float NaN, and `nan` is text."""
    assert math.isnan(load("a: .nan\n")["a"])
    assert load("a: nan\n") == {"a": "nan"}


@pytest.mark.parametrize(
    "text", [*TEXTS, *NUMBERS, *WORDS, "a # b", "a: b", " a", "'a'", "é", "two\nlines", "\udcff"]
)
def test_dump_texts_reload_here_and_in_yaml_1_1(text):
    """A text is quoted where this schema or YAML 1.1 would read it as another kind.

    Written quoted where this schema or YAML 1.1 would take it for something else.
    """
    written = dump({"a": text, "b": [text]})
    assert load(written) == {"a": text, "b": [text]}
    assert yaml.safe_load(written) == {"a": text, "b": [text]}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is there twice"),
        ("a: {b: 1, b: 1}\n", "the key 'b' is there twice"),
        (
            "train: {epochs:2}\n",
            "'epochs:2' has no value; write a space after the colon of a key",
        ),
        ("train: {epochs 2, seed: 1}\n", "'epochs 2' has no value"),
        ("train: {epochs:\u00a02}\n", "has no value"),
        ("a: !!timestamp 2024-01-01\n", "could not determine a constructor for the tag"),
        ("a: !!binary aGk=\n", "could not determine a constructor for the tag"),
        ("a: !!python/name:os.system\n", "could not determine a constructor for the tag"),
        ("a: !!bool yes\n", "'yes' is neither true nor false"),
        ("a: !!int x\n", "invalid literal"),
        ("a: &a [*a]\n", "an anchor holds itself"),
        ("a: &a {b: {c: *a}}\n", "an anchor holds itself"),
        ("a: *b\n", "undefined alias"),
        ("a: 1\n--- \na: 2\n", "expected a single document"),
        ("a:\n\tb: 1\n", "cannot start any token"),
        ("[" * 5000, "recursion"),
        ("a: " + "9" * 5000, "integer string conversion"),
    ],
)
def test_load_rejects_invalid_yaml(text, line):
    """Duplicate keys, keys without a value, tags and self-reference raise an error."""
    with pytest.raises((yaml.YAMLError, ValueError, RecursionError), match=line):
        load(text)


def test_load_rejects_anchor_expansion():
    """Anchors that expand to more than a million values are rejected."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ValueError, match="its anchors make it larger than 1000000 values"):
        load("\n".join(levels))


def test_load_anchors_and_merge_keys():
    """Anchors, aliases and the merge key `<<` are allowed."""
    assert load("a: &a {b: 1, c: [2]}\nd: {<<: *a, b: 3}\ne: [*a, *a]\n") == {
        "a": {"b": 1, "c": [2]},
        "d": {"b": 3, "c": [2]},
        "e": [{"b": 1, "c": [2]}, {"b": 1, "c": [2]}],
    }
    assert load("a: {b: , c}\n") == {"a": {"b": None, "c": None}}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (" 3 ", 3),
        ("3 # three", "3 # three"),
        ("~", "~"),
        ("NULL", "NULL"),
        ("a: b", "a: b"),
        ("[1, no, 1e3]", [1, "no", 1000.0]),
        (" {a: [b c, 2]}", {"a": ["b c", 2]}),
        ("'3'", "3"),
        ('"a\\nb"', "a\nb"),
        ("- a", "- a"),
        ("&a b", "&a b"),
        ("!!str 3", "!!str 3"),
        ("|", "|"),
    ],
)
def test_value_scalars_and_collections(text, read):
    """`value` parses one override value; comments and tags in it stay text."""
    assert value(text) == read


def test_value_of_texts_keeps_list_items_as_text():
    """With `of_texts`, each item of a list stays text."""
    assert value("[1, 1e3, null, 2024-01-01, a b]", of_texts=True) == [
        "1",
        "1e3",
        "null",
        "2024-01-01",
        "a b",
    ]
    assert value("3", of_texts=True) == 3


@pytest.mark.parametrize(
    "text", ["[1", "{a: 1", "'a", "[*]", "{a: 1, a: 2}", "[&a [*a]]", "[a] b", "{a:1}"]
)
def test_value_rejects_invalid_yaml(text):
    """A value that begins as a collection or quote but is no YAML raises an error."""
    with pytest.raises((yaml.YAMLError, ValueError)):
        value(text)
