"""The flows against real parts: mongod, a Prefect server, real transactions, and a Gemini on loopback."""
