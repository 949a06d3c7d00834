"""Locks outside of Celery: ``python -m examples.plain_lock``."""
