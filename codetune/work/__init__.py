"""What the processes of a command do: rows (rowwork), training, completions (completing); how they are started and
watched (workers), and how each comes to its part (jobs)."""
