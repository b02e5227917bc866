"""The plug-in module: cheap to import, with valid specs."""

from __future__ import annotations

from sage_infer_testing import PluginContract


class TestPlugin(PluginContract):
    module = "sage_infer_hf.plugin"
