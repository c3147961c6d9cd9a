"""What a session wants of the broker, done by a link."""

from edge_runtime.link import Link
from edge_runtime.wire.events import Publish, Subscribe, Unsubscribe


def send(link: Link, command: Publish | Subscribe | Unsubscribe) -> None:
    """Hand a command to the link.

    While that is down nothing is sent and nothing is lost: the session says it again when it is up.
    """
    match command:
        case Publish(topic, payload, qos, retain):
            link.publish(topic, payload, qos, retain=retain)
        case Subscribe(topics, qos):
            link.subscribe(topics, qos)
        case Unsubscribe(topics):
            link.unsubscribe(topics)
