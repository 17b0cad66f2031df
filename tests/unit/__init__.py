"""Facts about the domain and other plain Python: no server, no network, milliseconds."""
