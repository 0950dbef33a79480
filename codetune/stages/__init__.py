"""The seven stages of the pipeline, one file each, and the one runner."""
