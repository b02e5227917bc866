"""What the tests of this package share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the helper modules, whatever pytest's import mode
