"""The demo: a broker, a coordinator and real device processes on one machine, on real data."""
