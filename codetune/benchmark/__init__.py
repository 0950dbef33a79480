"""What a model is worth: problems, prompts, completions, solutions, verdicts, figures."""
