"""Selected rows to trained weights, through the Trainer of transformers."""
