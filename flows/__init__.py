"""Order and policy: which blocks, what runs when, when to stop."""
