"""Ways to run it; nothing imports this package."""
