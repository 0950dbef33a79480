"""Processes: what a launcher told this one, the workers of a command, and how they meet."""
