"""The trees of topics.py against the definition of matching, on random topics and filters."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.broker.topics import (
    MAX_LEVELS,
    Message,
    Retained,
    Subscriptions,
    check_filter,
    check_topic,
    matches,
    overlap,
)

LEVEL = st.sampled_from(["", "a", "b", "$x"])
TOPIC = st.lists(LEVEL, min_size=1, max_size=4).map("/".join).filter(bool)
FILTER = st.builds(
    lambda levels, end: "/".join(levels + end),
    st.lists(LEVEL | st.just("+"), min_size=0, max_size=4),
    st.sampled_from([[], ["#"]]),
).filter(bool)
CLIENT = st.sampled_from(["c1", "c2", "c3"])
CHANGES = st.lists(st.tuples(st.booleans(), FILTER, CLIENT, st.integers(0, 2)), max_size=25)


@pytest.mark.parametrize(
    ("name", "topic", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "a/b", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/x", False),
        ("+/monitor/Clients", "$SYS/monitor/Clients", False),
        ("$SYS/#", "$SYS/x", True),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", True),
        ("a/#", "a/$x", True),
    ],
)
def test_matching_by_the_examples_of_chapter_4_7(name: str, topic: str, *, expected: bool) -> None:
    assert matches(name, topic) is expected


@settings(max_examples=300)
@given(CHANGES, TOPIC)
def test_subscriptions_match_by_definition(changes: list[tuple[bool, str, str, int]], topic: str) -> None:
    subscriptions, model = Subscriptions(), {}
    for add, name, client_id, qos in changes:
        if add:
            subscriptions.add(name, client_id, qos)
            model[name, client_id] = qos
        else:
            subscriptions.remove(name, client_id)
            model.pop((name, client_id), None)
    expected: dict[str, int] = {}
    for (name, client_id), qos in model.items():
        if matches(name, topic):
            expected[client_id] = max(qos, expected.get(client_id, 0))
    assert dict(subscriptions.match(topic)) == expected


@given(CHANGES)
def test_removed_subscriptions_leave_nothing_behind(changes: list[tuple[bool, str, str, int]]) -> None:
    subscriptions = Subscriptions()
    for _, name, client_id, qos in changes:
        subscriptions.add(name, client_id, qos)
    for _, name, client_id, _ in changes:
        subscriptions.remove(name, client_id)
    assert (subscriptions._exact, subscriptions._root.children) == ({}, {})


@settings(max_examples=300)
@given(st.lists(st.tuples(TOPIC, st.sampled_from([b"", b"x", b"yy"])), max_size=25), FILTER)
def test_retained_messages_match_by_definition(changes: list[tuple[str, bytes]], name: str) -> None:
    retained, model = Retained(), {}
    for topic, payload in changes:
        retained.set(Message(topic, topic.encode(), payload, 1))
        model.pop(topic, None)
        if payload:
            model[topic] = payload
    found = {message.topic: message.payload for message in retained.match(name)}
    assert found == {topic: payload for topic, payload in model.items() if matches(name, topic)}
    assert len(retained) == len(model)
    for topic in model:
        retained.set(Message(topic, topic.encode(), b"", 0))
    assert (len(retained), retained.charged_bytes, retained._root.children) == (0, 0, {})


@settings(max_examples=300)
@given(FILTER, FILTER, TOPIC)
def test_filters_that_match_one_topic_overlap(one: str, other: str, topic: str) -> None:
    assert overlap(one, other) == overlap(other, one)
    if matches(one, topic) and matches(other, topic):
        assert overlap(one, other)


@given(FILTER, TOPIC)
def test_a_topic_name_as_a_filter_overlaps_what_matches_it(name: str, topic: str) -> None:
    assert overlap(name, topic) == matches(name, topic)


def test_topics_may_be_200_levels_deep_and_no_deeper() -> None:
    deep = "/".join("a" * MAX_LEVELS)
    subscriptions, retained = Subscriptions(), Retained()
    for name in (deep, deep[:-1] + "+", deep[:-1] + "#"):
        check_filter(name)
        subscriptions.add(name, name, 1)
    retained.set(Message(deep, deep.encode(), b"x", 0))
    assert len(subscriptions.match(deep)) == 3
    assert len(retained.match("#")) == 1
    for check in (check_topic, check_filter):
        check(deep)
        with pytest.raises(ValueError, match="201 levels, at most 200"):
            check(deep + "/a")


@pytest.mark.parametrize("name", ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "++", "a/b#"])
def test_bad_filters_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"filter|'\+' and '#'"):
        check_filter(name)


@pytest.mark.parametrize("topic", ["", "a+b", "a/#"])
def test_bad_topic_names_are_refused(topic: str) -> None:
    with pytest.raises(ValueError, match="not a topic name"):
        check_topic(topic)
