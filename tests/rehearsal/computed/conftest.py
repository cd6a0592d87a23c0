"""These tests are collected only in a process whose results are computed."""

from __future__ import annotations

import sys

collect_ignore_glob = [] if "tests.rehearsal.results" in sys.modules else ["test_*.py"]
