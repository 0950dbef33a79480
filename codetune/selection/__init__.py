"""Which rows are worth training on: score, embed, cluster, select."""
