"""Text to tokens to batches; pure, but for the reader of data sets."""
