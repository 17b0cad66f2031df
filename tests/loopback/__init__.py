"""Servers on 127.0.0.1 that speak the protocols of outside services, and break in the ways those break."""
