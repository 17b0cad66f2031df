"""Aggregates against a second, naive computation of every figure."""
