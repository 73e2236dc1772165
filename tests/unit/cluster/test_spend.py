"""What others have spent."""

from __future__ import annotations

from remote_inference.cluster.spend import Spend


def test_the_latest_word_on_a_second_counts_and_leaves_in_its_time() -> None:
    spend = Spend()
    spend.hear("a", 5, 10, 70.0, 0.0)
    spend.hear("a", 6, 1, 71.0, 0.0)
    spend.hear("b", 5, 3, 70.5, 0.0)
    spend.hear("a", 5, 4, 99.0, 0.0)
    assert (spend.total, spend.of("a", 0.0), spend.of("b", 0.0), spend.of("c", 0.0)) == (8, 5, 3, 0)
    assert spend.of("a", 70.0) == 1
    assert list(spend.forget(69.9)) == []
    assert sorted(spend.forget(71.0)) == [("a", 5), ("a", 6), ("b", 5)]
    assert (spend.total, spend.of("a", 0.0)) == (0, 0)


def test_what_is_over_already_does_not_count() -> None:
    spend = Spend()
    spend.hear("a", 5, 10, 70.0, 70.0)
    assert spend.total == 0
