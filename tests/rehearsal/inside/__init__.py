"""Claims about the stand-in, tested in a process that runs on it (see test_stand_in.py)."""
