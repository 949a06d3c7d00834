"""A scheduled job that takes longer than its interval: ``python -m examples.beat_dedup``."""
