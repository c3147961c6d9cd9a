"""Edge Runtime, the board: runs training plans on local data and talks to a gateway over MQTT.

Imports numpy, paho-mqtt and the compiled core, and nothing else; see docs/plan-format.md and docs/wire.md.
"""

__version__ = "0.1.0"
