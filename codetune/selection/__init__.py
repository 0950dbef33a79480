"""The choice of the rows worth training on: score, embed, cluster, select."""
