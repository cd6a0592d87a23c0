"""Tests of the stand-in, run in a process on it (see test_stand_in.py)."""
