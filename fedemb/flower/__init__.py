"""Adapters between fedemb's parts and Flower's messages; no mathematics."""
