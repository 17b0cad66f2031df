"""Aggregates: exact figures of a day, which merge to weeks, months and all time, and the documents made of them."""
