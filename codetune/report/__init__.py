"""What is known before and after the work: the plan, the checks of a machine, the page of a run."""
