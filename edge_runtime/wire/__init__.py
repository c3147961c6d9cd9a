"""The protocol without sockets (docs/protocol.md)."""
