"""Charging an order once, whatever happens: ``python -m examples.double_charge``."""
