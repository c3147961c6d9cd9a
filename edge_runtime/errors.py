"""The root of every error the board raises itself.

An error is named after the rule that was broken; its message gives the value that broke it and what to do. The rule's
name travels over the wire (`fail`, `refuse`), so renaming a class is a change of the protocol.
"""

__all__ = ["EdgeError", "LocalError", "RemoteError"]


class EdgeError(Exception):
    """A broken rule; the message says which value broke it and what to do."""

    @property
    def rule(self) -> str:
        """The name of the rule, as it is sent over the wire."""
        return type(self).__name__


class LocalError(EdgeError):
    """A rule broken on this machine: its configuration, its data, its files."""


class RemoteError(EdgeError):
    """A rule broken by bytes that came from somewhere else."""
