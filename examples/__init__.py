"""Programs that show what the library is for; each is run by a test in ``tests/examples``."""
