"""The rest of the demo source: sites, their visits, and what the source counts of them; fits ``deployments.sample``."""
