"""Answers with figures: what a question asks for, where it stands or how it is counted, and what can't be known."""
