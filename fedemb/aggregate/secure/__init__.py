"""Sums that the server learns without learning what each client sent."""
