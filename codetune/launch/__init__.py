"""Processes: ranks, devices, workers, process groups, and the dispatch of jobs to them."""
