from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

if "SAGE_RANDOM_EXAMPLES" not in os.environ:
    settings.load_profile("ci")  # of hypothesis: the same examples in each run, and no limit of time

sys.path.insert(0, str(Path(__file__).parent))  # for cuda_fake_nvml, whatever pytest's import mode
