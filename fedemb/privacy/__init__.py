"""Differential privacy: what was done (events), what it costs (accountants), and whether it is so (audit)."""
