"""The same cases against every implementation of one promise."""
