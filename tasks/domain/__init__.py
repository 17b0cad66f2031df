"""Plain Python: no Prefect, no driver, no network, no clock, no environment."""
