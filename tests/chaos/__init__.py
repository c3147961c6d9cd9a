"""Federations of real processes under seeded faults: what strikes when, the driver, and what must hold afterwards."""
