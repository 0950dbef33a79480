"""The run directory: where artefacts lie and how they are sealed (run), how rows come to be there (rowwise, parts),
as which files (artefacts), and what of it is still true (stages)."""
