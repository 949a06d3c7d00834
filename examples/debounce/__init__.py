"""A document that is saved often, and indexed once: ``python -m examples.debounce``."""
