"""What the backend requires of a machine and where to look for it. Data only: the plug-in module reads it."""

from sage_infer import Need

__all__ = ["ENGINE", "NEEDS", "PAIRS", "PLUGIN", "PLUGIN_DISTRIBUTIONS"]

ENGINE = {"vllm": ">=0.13,<0.14"}
"""vLLM, by distribution, built with ``VLLM_TARGET_DEVICE=empty``."""

PLUGIN = "mlu"
PLUGIN_DISTRIBUTIONS = {"vllm-mlu": ">=0.13,<0.14"}
PAIRS = ({"vllm": "==0.13.*", "vllm-mlu": "==0.13.*"},)
"""vllm-mlu 0.9.1 runs vLLM's former engine, V0, and is not supported."""

_SDK = "is part of the Cambricon SDK (ecosystem@cambricon.com)"

NEEDS = (
    Need(
        what="driver",
        files=("/dev/cambricon_ctl", "/proc/driver/cambricon"),
        install=f"install the driver, which {_SDK}; in a container pass the devices on",
    ),
    Need(
        what="NeuWare toolkit",
        files=("/usr/local/neuware",),
        variables=("NEUWARE_HOME",),
        install=f"install CNToolkit, which {_SDK}, and set NEUWARE_HOME",
    ),
    Need(
        what="torch_mlu",
        distributions={"torch-mlu": ""},
        install=f"use the container of torch_mlu, which {_SDK}",
    ),
    Need(
        what="vLLM",
        distributions=ENGINE,
        install="VLLM_TARGET_DEVICE=empty pip install -e vllm, as github.com/Cambricon/vllm-mlu says",
    ),
    Need(
        what="vLLM platform plug-in vllm-mlu",
        distributions=PLUGIN_DISTRIBUTIONS,
        pairs=PAIRS,
        entry_point=f"vllm.platform_plugins:{PLUGIN}",
        install="git clone https://github.com/Cambricon/vllm-mlu && pip install -e vllm-mlu",
    ),
)
