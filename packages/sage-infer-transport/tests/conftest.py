"""How the property tests of this package run."""

from __future__ import annotations

import os

from hypothesis import settings

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time
