"""What the fuzzers of files share. SAGE_FUZZ_EXAMPLES makes them longer."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from sage_infer.errors import ModelFileError, UnsupportedFeature

EXAMPLES = int(os.environ.get("SAGE_FUZZ_EXAMPLES", "150"))
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
REFUSED = (ModelFileError, UnsupportedFeature)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def linked(folder: Path, to: Path, *, leave_out: str) -> Path:
    """A folder with links to the files of another, without one of them."""
    to.mkdir(exist_ok=True)
    (to / leave_out).unlink(missing_ok=True)
    for file in folder.iterdir():
        if file.name != leave_out and not (to / file.name).exists():
            (to / file.name).symlink_to(file)
    return to
