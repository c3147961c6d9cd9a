"""The Flower app of row T30."""
