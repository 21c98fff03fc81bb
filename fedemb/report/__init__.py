"""What a run shows: its log, its progress, its results, its pictures."""
