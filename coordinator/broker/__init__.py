"""The MQTT broker of a site: one that runs already, mosquitto, or the embedded one."""

from __future__ import annotations

from coordinator.broker.start import BrokerError, RunningBroker, start_broker

__all__ = ["BrokerError", "RunningBroker", "start_broker"]
