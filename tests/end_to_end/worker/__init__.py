"""Tests with a worker of their own."""
