"""A coordinator on its way onto a site: its epoch, and giving way to one that is there."""

from edge_runtime.wire import Publish, Subscribe, Warned, messages, topics
from edge_runtime.wire.entry import ANSWER_S, ASK_S, SiteEntry
from edge_runtime.wire.events import GatewaySuperseded

SITE = "lab"


def presence(epoch: int, boot: str, state: str = "up") -> bytes:
    return messages.format_gateway(messages.GatewayState(epoch, boot, state))


def entry(stored_epoch: int = 3) -> SiteEntry:
    one = SiteEntry(SITE, stored_epoch, "boot-m")
    assert one.connected() == [Subscribe((topics.gateway(SITE),), 1)]
    assert one.tick(100.0) == []
    one.subscribed(0.0)
    return one


def spoken(one: SiteEntry, now: float) -> messages.GatewayState:
    (said,) = one.tick(now)
    assert isinstance(said, Publish)
    assert (said.topic, said.retain, one.entered) == (topics.gateway(SITE), True, False)
    return messages.parse_gateway(said.payload)


def test_on_a_site_where_nothing_is_kept_it_waits_for_the_ask_only() -> None:
    one = entry()
    one.tick(ASK_S - 0.01)
    assert not one.entered
    assert one.tick(ASK_S) == []
    assert (one.entered, one.epoch) == (True, 4)


def test_where_the_last_coordinator_is_known_to_be_gone_it_goes_on_at_once() -> None:
    for state in ("lost", "stopped"):
        one = entry()
        assert one.received(0.1, presence(8, "boot-a", state)) == []
        assert one.tick(0.1) == []
        assert (one.entered, one.epoch) == (True, 9)


def test_its_epoch_is_above_the_stored_and_the_kept_one_and_has_a_cap() -> None:
    for stored, kept, epoch in ((3, 8, 9), (8, 3, 9), (0, messages.MAX_EPOCH, messages.MAX_EPOCH)):
        one = entry(stored)
        one.received(0.1, presence(kept, "boot-z", "lost"))
        assert one.epoch == epoch


def test_an_up_that_nobody_stands_behind_costs_the_time_of_an_answer() -> None:
    one = entry()
    one.received(0.1, presence(8, "boot-z"))
    assert spoken(one, 0.1) == messages.GatewayState(9, "boot-m", "up")
    one.received(0.2, presence(9, "boot-m"))  # our own words
    one.received(0.2, presence(8, "boot-z", "lost"))
    assert one.tick(0.1 + ANSWER_S - 0.01) == []
    assert not one.entered
    one.tick(0.1 + ANSWER_S)
    assert (one.entered, one.epoch) == (True, 9)


def test_one_that_answers_was_first() -> None:
    one = entry()
    one.received(0.1, presence(8, "boot-z"))
    spoken(one, 0.1)
    assert one.received(0.3, presence(10, "boot-a")) == []
    assert one.received(0.4, presence(8, "boot-z")) == [GatewaySuperseded(8)]


def test_a_connection_cut_while_it_listens_begins_anew_and_forgets_no_epoch() -> None:
    one = entry()
    one.received(0.1, presence(8, "boot-z"))
    spoken(one, 0.1)
    one.connected()
    one.subscribed(5.0)
    one.received(5.1, presence(9, "boot-m"))
    assert spoken(one, 5.1) == messages.GatewayState(9, "boot-m", "up")
    assert one.received(5.2, presence(8, "boot-z")) == [GatewaySuperseded(8)]


def test_what_breaks_a_rule_is_ignored_with_a_warning() -> None:
    one = entry()
    (warning,) = one.received(0.1, b"{}")
    assert isinstance(warning, Warned)
    (warning,) = one.received(0.1, presence(8, "b").replace(b":8", b":9007199254740992"))
    assert isinstance(warning, Warned)
    assert one.received(0.1, b"") == []
    one.tick(ASK_S)
    assert (one.entered, one.epoch) == (True, 4)
