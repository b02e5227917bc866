"""The plug-in module: light to import, honest about what it brings."""

from sage_infer_testing import PluginContract


class TestPlugin(PluginContract):
    module = "sage_infer_kunlunxin.plugin"
