"""Several trainings in one command: which settings make the better model, with seeds, controls and intervals."""
