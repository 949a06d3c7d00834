"""Twenty buyers, five tickets: ``python -m examples.flash_sale``."""
