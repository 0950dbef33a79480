"""The only place that loads networks and runs them."""
