"""Long searches for inputs that break a decoder."""
