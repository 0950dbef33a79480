"""Selected rows to trained weights, through the Trainer of transformers.

the stage            train, summary
before the steps     build_model, parallelism, optimizers, compilation, memory, plausibility
a step               batch_sampler, collate, loss, trainer, callbacks, metrics
evaluations          holdout, tasks_apart
weights              checkpoint, export
"""
