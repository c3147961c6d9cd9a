"""The MQTT broker of a site: one that runs already, mosquitto, or the embedded one."""

from __future__ import annotations

from coordinator.broker.mosquitto import find_mosquitto
from coordinator.broker.start import BrokerError, RunningBroker, start_broker

__all__ = ["BrokerError", "RunningBroker", "find_mosquitto", "start_broker"]
