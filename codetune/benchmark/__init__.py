"""The evaluation of a model: problems, prompts, completions, solutions, verdicts, figures."""
