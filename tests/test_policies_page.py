"""The page about the control plane lists its policies."""

from __future__ import annotations

import re
from pathlib import Path

from sage_llm.policies import POLICIES, parameters

PAGE = Path(__file__).resolve().parents[1] / "docs" / "control-plane.md"


def test_the_page_lists_all_policies_with_parameters_and_defaults() -> None:
    _, _, page = PAGE.read_text("utf-8").partition("\n## Choose policies\n")
    section, _, _ = page.partition("\n## ")
    rows = re.findall(r"^\| `([a-z-]+)`(?: \(default\))? \|.*\|([^|]*)\|$", section, flags=re.M)
    documented = {name: re.findall(r"`(\w+)=([^`]*)`", cell) for name, cell in rows}
    for table in POLICIES.values():
        for name, cls in table.items():
            expected = [
                (f.name, '""' if isinstance(f.default, str) else f"{f.default:g}")
                for f in parameters(cls).values()
            ]
            assert documented.pop(name) == expected
    assert not documented
