"""What others have spent."""

from __future__ import annotations

from remote_inference.cluster.spend import Spend


def test_the_latest_word_on_a_second_counts_and_leaves_in_its_time() -> None:
    spend = Spend()
    spend.hear("a", 5, (10, 100, 60, 40), 70.0, 0.0)
    spend.hear("a", 6, (1, 10, 6, 4), 71.0, 0.0)
    spend.hear("b", 5, (3, 30, 20, 10), 70.5, 0.0)
    spend.hear("a", 5, (4, 40, 30, 10), 99.0, 0.0)
    assert (spend.total("requests"), spend.total("tokens")) == (8, 80)
    assert (spend.total("input_tokens"), spend.total("output_tokens")) == (56, 24)
    assert [spend.of(name, "requests", 0.0) for name in "abc"] == [5, 3, 0]
    assert spend.of("a", "tokens", 70.0) == 10
    spend.forget(69.9)
    assert spend.total("requests") == 8
    spend.forget(71.0)
    assert (spend.total("requests"), spend.total("tokens"), spend.of("a", "requests", 0.0)) == (0, 0, 0)


def test_what_is_over_already_does_not_count() -> None:
    spend = Spend()
    spend.hear("a", 5, (10, 10, 10, 0), 70.0, 70.0)
    assert spend.total("requests") == 0


def test_what_is_not_counted_over_a_window_is_not_spent() -> None:
    assert Spend().total("concurrent") == 0
