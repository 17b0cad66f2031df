"""The HTTP service: health, metrics and the operations pages; retrieval joins it as a router of its own."""
