"""Benches: ratios against what a user would pick instead, measured alternately in one run, beside their bounds."""
