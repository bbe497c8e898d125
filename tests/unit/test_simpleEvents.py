import doctest

import pytest

import simpleEvents
from simpleEvents import EventSystem


def test_the_docstrings_example_is_true():
    failed, tried = doctest.testmod(simpleEvents)
    assert (failed, tried > 0) == (0, True)


def test_a_new_event_system_has_no_events_and_shares_none_with_another():
    one, other = EventSystem(), EventSystem()
    one.add_event("full")
    assert (one.events, other.events) == (["full"], [])


def test_events_stay_in_the_order_in_which_they_were_added():
    system = EventSystem()
    for event in "cab":
        system.add_event(event)
    assert system.events == ["c", "a", "b"]


def test_an_event_that_was_added_twice_has_to_be_removed_twice():
    system = EventSystem()
    for event in ("full", "slow", "full"):
        system.add_event(event)
    system.remove_event("full")
    assert system.events == ["slow", "full"]
    system.remove_event("full")
    assert system.events == ["slow"]


def test_removing_what_is_not_there_is_an_error_and_changes_nothing():
    system = EventSystem()
    system.add_event("full")
    with pytest.raises(ValueError, match="not in list"):
        system.remove_event("slow")
    assert system.events == ["full"]
