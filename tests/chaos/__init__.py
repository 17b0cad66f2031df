"""Chaos: one migration whose process and servers are killed again and again, and the proof that nothing came of it.

``python -m tests.chaos --seed 1 --kills 50 --rows 20000`` runs it; ``tests/end_to_end/test_chaos.py`` a short one.
"""
