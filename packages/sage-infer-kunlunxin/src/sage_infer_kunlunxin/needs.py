"""What the backend requires of a machine and where to look for it. Data only: the plug-in module reads it."""

from sage_infer import Need

__all__ = ["ENGINE", "NEEDS", "PAIRS", "PLUGIN", "PLUGIN_DISTRIBUTIONS"]

ENGINE = {"vllm": ">=0.15,<0.16"}
"""vLLM, by distribution."""

PLUGIN = "kunlun"
PLUGIN_DISTRIBUTIONS = {"vllm-kunlun": ">=0.15,<0.16"}
PAIRS = ({"vllm": "==0.15.1", "vllm-kunlun": "==0.15.1"},)
"""vllm-kunlun 0.11.1 requires vLLM 0.11.0, whose priority scheduling fails; it is not supported."""

_GUIDE = "github.com/baidu/vLLM-Kunlun, docs/source/installation.md"

NEEDS = (
    Need(
        what="driver",
        files=("/dev/xpuctrl", "/proc/kunlun/version"),
        install="install the Kunlunxin driver (XRE); in a container pass /dev/xpu* and /dev/xpuctrl on",
    ),
    Need(
        what="XRE toolkit",
        files=("/usr/local/xpu*",),
        install=f"install XRE of the driver's version, or use the image that {_GUIDE} names",
    ),
    Need(
        what="vLLM",
        distributions=ENGINE,
        install=f"pip install 'vllm==0.15.1' --no-deps, as {_GUIDE} says",
    ),
    Need(
        what="vLLM platform plug-in vllm-kunlun",
        distributions=PLUGIN_DISTRIBUTIONS,
        pairs=PAIRS,
        entry_point=f"vllm.platform_plugins:{PLUGIN}",
        install=f"install vllm-kunlun 0.15.1 from its source, as {_GUIDE} says; PyPI has 0.11.1 only",
    ),
)
