"""Retrieval: what a question asks for, what documents are chosen and ranked by, and how rankings are joined."""
