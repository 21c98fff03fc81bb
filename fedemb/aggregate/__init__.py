"""From a cohort's updates to one step per row."""
