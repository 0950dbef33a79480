"""The evaluation of a model: problems, prompts, completions, solutions, verdicts, figures.

problems        benchmarks (the table), evalplus_format, published_tasks, assertions, download, parts, tasks_apart
completions     generate
solutions       sanitize_all (every sample), sanitize (one), evalplus_cut, longest_program, dependency_slice
verdicts        judge, worker_pool, run_suite, expected_outputs, output_match, value_structure
figures         evaluate (reports and comparisons), likelihood (held-out rows), statistics, seeds
"""
