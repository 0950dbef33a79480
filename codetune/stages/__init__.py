"""The seven stages of the pipeline, one file each, and the one runner.

all of them        stage (what one is), pipeline (their order), runner, status, checks, precision
their inputs       dataset (examples.jsonl), inputs (models, artefacts of earlier stages)
score, embed       row_stage (blocks of rows, shards, processes), shards
select             holdout, exclusions, enough_rows, selection_inputs, selection_report, explanation
train              resume, tasks_apart, model_card, card_text, push
generate, sanitize, evaluate     benchmarks, model_ref, sandbox; likelihood (evaluate for the held-out rows)
"""
