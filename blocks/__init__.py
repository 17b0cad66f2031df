"""One outside system each: settings, client, smallest verbs, errors."""
