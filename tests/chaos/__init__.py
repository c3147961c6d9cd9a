"""Federations of real processes under seeded faults: what is struck and when, the driver, and what must hold afterwards."""
