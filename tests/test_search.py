"""Search with Optuna: spaces, a study that is continued, trials that fail."""

import pytest

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.core.utils import JobReturn, JobStatus  # noqa: E402
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402
from optuna.trial import TrialState  # noqa: E402

from sensing.errors import ConfigError  # noqa: E402
from sensing.sweeps.space import distribution  # noqa: E402
from sensing.sweeps.study import Search  # noqa: E402

SPACE = ["x=interval(-2,2.0)", "kind=choice(flat,steep)", "scene=hall"]


def parse(words):
    return OverridesParser.create().parse_overrides(words)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("a=1,2,big", CategoricalDistribution(["1", "2", "big"])),
        ("a=choice([1,2],[3])", CategoricalDistribution(["[1,2]", "[3]"])),
        ("a=range(1,9,3)", IntDistribution(1, 7, step=3)),
        ("a=range(0,1.1,0.5)", FloatDistribution(0.0, 1.0, step=0.5)),
        ("a=tag(log,range(1,9))", IntDistribution(1, 8, log=True)),
        ("a=interval(1,2.5)", FloatDistribution(1.0, 2.5)),
        ("a=int(interval(1,8))", IntDistribution(1, 8)),
        ("a=tag(log,interval(0.001,1))", FloatDistribution(0.001, 1.0, log=True)),
    ],
)
def test_spaces(word, wanted):
    (override,) = parse([word])
    found = distribution(override)
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize("word", ["a=interval(2.0,1.0)", "a=tag(log,interval(0.0,1.0))", "a=range(3,1)"])
def test_no_space(word):
    (override,) = parse([word])
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params\.a must be a search space"):
        distribution(override)


def search(folder, words=SPACE, seed=0):
    return Search(parse(words), f"sqlite:///{folder}/study.db", "sweep", n_startup_trials=4, seed=seed)


def value(overrides):
    """A valley at x = 0.5, deeper for one kind."""
    words = dict(word.split("=") for word in overrides)
    return (float(words["x"]) - 0.5) ** 2 + (words["kind"] == "flat")


def result(number):
    done = JobReturn(status=JobStatus.FAILED if isinstance(number, Exception) else JobStatus.COMPLETED)
    done.return_value = number
    return done


def minimise(found, total, size=1):
    seen = []
    while batch := found.next_batch(size, total):
        for asked in batch:
            seen.append((asked.number, asked.overrides))
            found.tell(asked, result(value(asked.overrides)))
    return seen


def test_search_continued_is_the_search_unbroken_and_beats_its_random_start(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    unbroken = minimise(search(whole), 24)
    continued = minimise(search(parts), 7) + minimise(search(parts), 24)
    assert continued == unbroken
    assert [number for number, _ in unbroken] == list(range(24))
    values = [value(overrides) for _, overrides in unbroken]
    assert min(values[4:]) < min(values[:4])
    assert sum(values[-8:]) < sum(values[:8])
    assert minimise(search(parts), 24) == []


def test_interrupted_trials_continue_under_their_numbers(tmp_path):
    first = search(tmp_path)
    asked = first.next_batch(3, 10)
    first.tell(asked[1], result(1.0))
    again = search(tmp_path)
    batches = [again.next_batch(3, 10) for _ in range(2)]
    assert [[each.number for each in batch] for batch in batches] == [[0], [2]]
    assert [batch[0].overrides for batch in batches] == [asked[0].overrides, asked[2].overrides]
    for (each,) in batches:
        again.tell(each, result(2.0))
    assert [trial.state for trial in again.study.trials] == [TrialState.COMPLETE] * 3
    assert again.next_batch(1, 10)[0].number == 3


def test_trials_that_fail_are_reported_and_do_not_end_the_search(tmp_path):
    found = search(tmp_path)
    outcomes = [ValueError("layer 3:\nloss"), float("nan"), {"folder": "x"}]
    for outcome in outcomes:
        (asked,) = found.next_batch(1, 5)
        found.tell(asked, result(outcome))
    with pytest.raises(ConfigError, match=r"got none of 3; the last: ValueError: the result must be a finite number"):
        found.check_success()
    (asked,) = found.next_batch(1, 5)
    found.tell(asked, result(0.5))
    found.check_success()
    assert [trial.state.name for trial in found.study.trials] == ["FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert found.study.trials[0].user_attrs["reason"] == "ValueError: layer 3:"
    assert "got nan" in found.study.trials[1].user_attrs["reason"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SPACE[:2], "scene=urban"], r"got fixed overrides \['scene=urban'\] instead of \['scene=hall'\]"),
        (["x=interval(-3,2.0)", *SPACE[1:]], r"got x FloatDistribution\(high=2\.0, .*low=-3\.0"),
        (SPACE[1:], r"got x None instead of"),
    ],
)
def test_study_about_something_else_is_refused(tmp_path, words, message):
    minimise(search(tmp_path), 1)
    with pytest.raises(ConfigError, match=message):
        search(tmp_path, words)


def test_nothing_to_search_and_no_database_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.params must name something to search"):
        search(tmp_path, ["scene=hall"])
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.storage must be a database of Optuna"):
        search(tmp_path / "absent")
