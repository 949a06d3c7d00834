"""The flash sale and the double charge, on a Redis of its own: ``make demo``."""
