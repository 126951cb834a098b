"""Checks of configuration values: what passes, and what a message says."""

import pytest

from sensing import options
from sensing.errors import ConfigError


def test_lookup_follows_dots_and_is_none_where_a_part_is_missing():
    config = {"a": {"b": 1}, "c": 2}
    assert options.lookup(config, "a.b") == 1
    assert options.lookup(config, "a.x") is None
    assert options.lookup(config, "c.x.y") is None


@pytest.mark.parametrize("value", [-1, 0, 1.5, True, "3", None, float("nan")])
def test_integer_refuses(value):
    with pytest.raises(ConfigError, match=r"eval\.num_scenes must be a whole number >= 1, got "):
        options.integer({"eval": {"num_scenes": value}}, "eval.num_scenes", low=1)


@pytest.mark.parametrize("value", [-1.0, float("nan"), "abc", None, True, 0.0, float("inf")])
def test_positive_refuses(value):
    with pytest.raises(ConfigError, match=r"x must be a number > 0, got "):
        options.positive({"x": value}, "x")


def test_positive_accepts_zero_and_infinity_where_they_are_allowed():
    assert options.positive({"x": 0}, "x", allow_zero=True) == 0.0
    assert options.positive({"x": float("inf")}, "x", allow_infinite=True) == float("inf")


@pytest.mark.parametrize("value", [[], "10", 10, [1, float("nan")], [1, float("inf")], [1, "x"], [True], [5, 5], None])
def test_numbers_refuses(value):
    with pytest.raises(ConfigError, match=r"snr_db must be a list of finite numbers without duplicates, got "):
        options.numbers({"snr_db": value}, "snr_db")


def test_numbers_of_a_given_length():
    assert options.numbers({"x": [1, 1]}, "x", length=2) == [1.0, 1.0]
    with pytest.raises(ConfigError, match=r"x must be a list of 2 finite numbers, got \[1\]"):
        options.numbers({"x": [1]}, "x", length=2)


def test_names_lists_what_is_available():
    assert options.names({"estimators": ["b"]}, "estimators", ["a", "b"]) == ["b"]
    with pytest.raises(ConfigError, match=r"out of \['a', 'b'\], got unknown \['c'\]"):
        options.names({"estimators": ["a", "c"]}, "estimators", ["a", "b"])
    for value in ([], "a", None, ["a", "a"]):
        with pytest.raises(ConfigError, match="estimators must be"):
            options.names({"estimators": value}, "estimators", ["a", "b"])


def test_choice():
    with pytest.raises(ConfigError, match=r"data\.split must be one of \['train', 'test'\], got 'dev'"):
        options.choice({"data": {"split": "dev"}}, "data.split", ["train", "test"])


def test_existing_file(tmp_path):
    assert options.existing_file({"x": None}, "x", optional=True) is None
    with pytest.raises(ConfigError, match=r"x must be the path of a file \(say x=FILE\), got None"):
        options.existing_file({"x": None}, "x")
    with pytest.raises(ConfigError, match="not found"):
        options.existing_file({"x": str(tmp_path / "absent")}, "x")
    with pytest.raises(ConfigError, match="a folder"):
        options.existing_file({"x": str(tmp_path)}, "x")
    (tmp_path / "there").touch()
    assert options.existing_file({"x": str(tmp_path / "there")}, "x") == tmp_path / "there"
