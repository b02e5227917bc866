"""Configuration: defaults < file < environment < flags; each value keeps its origin.

Importing this package reads nothing and imports neither yaml nor cattrs; ``load_config`` imports them.
"""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "Config", "Inference", "InvalidConfig", "KVSettings", "LoadedConfig", "Models", "Plugins", "Transport",
    "config_template", "disabled_plugins", "find_config_file", "load_config", "write_template",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer.config.loading import load_config
    from sage_infer.config.template import config_template, write_template
    from sage_infer.config_file.disabled import disabled_plugins
    from sage_infer.config_file.document import InvalidConfig
    from sage_infer.config_file.layers import LoadedConfig
    from sage_infer.config_file.search import find_config_file
    from sage_infer.config_file.settings import Config, Inference, KVSettings, Models, Plugins, Transport

_FILE = "sage_infer.config_file"
_SETTINGS = ("Config", "Inference", "KVSettings", "Models", "Plugins", "Transport")
__getattr__ = lazy_exports(__name__, {
    "InvalidConfig": f"{_FILE}.document", "LoadedConfig": f"{_FILE}.layers", "load_config": "loading",
    "disabled_plugins": f"{_FILE}.disabled", "find_config_file": f"{_FILE}.search", "config_template": "template",
    "write_template": "template", **dict.fromkeys(_SETTINGS, f"{_FILE}.settings"),
})  # fmt: skip
