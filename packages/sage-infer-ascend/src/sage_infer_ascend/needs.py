"""What the backend requires of a machine and where to look for it. Data only: the plug-in module reads it."""

from sage_infer import Need

__all__ = ["ENGINE", "NEEDS", "PAIRS", "PLUGIN", "PLUGIN_DISTRIBUTIONS"]

_RANGE = ">=0.13,<0.27"
ENGINE = {"vllm": _RANGE}
"""vLLM, by distribution."""

PLUGIN = "ascend"
PLUGIN_DISTRIBUTIONS = {"vllm-ascend": _RANGE}
PAIRS = tuple(
    {"vllm": f"=={release}.*", "vllm-ascend": f"=={release}.*"}
    for release in ("0.13", "0.18", "0.23", "0.26")
)
"""Both must be of the same release; the vendor releases for some versions of vLLM only."""

_MATRIX = "https://docs.vllm.ai/projects/ascend"

NEEDS = (
    Need(
        what="driver",
        files=("/usr/local/Ascend/driver/version.info", "/dev/davinci_manager"),
        install="install the Ascend HDK (driver and firmware) from hiascend.com; in a container mount them",
    ),
    Need(
        what="CANN toolkit",
        files=("/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann*/set_env.sh"),
        variables=("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"),
        install=f"install CANN of the release that {_MATRIX} names, and source its set_env.sh",
    ),
    Need(
        what="NNAL (ATB)",
        files=("/usr/local/Ascend/nnal/atb/set_env.sh", "/usr/local/Ascend/nnal/atb/latest"),
        variables=("ATB_HOME_PATH",),
        install="install NNAL of CANN's release, and source /usr/local/Ascend/nnal/atb/set_env.sh",
    ),
    Need(
        what="torch_npu",
        distributions={"torch-npu": ">=2.8,<2.11"},
        install="pip install 'torch-npu>=2.8,<2.11' (vllm-ascend requires the right one)",
    ),
    Need(what="vLLM", distributions=ENGINE, install=f"pip install 'vllm{_RANGE}'"),
    Need(
        what="vLLM platform plug-in vllm-ascend",
        distributions=PLUGIN_DISTRIBUTIONS,
        pairs=PAIRS,
        entry_point=f"vllm.platform_plugins:{PLUGIN}",
        install=f"pip install 'vllm-ascend{_RANGE}', the release of the installed vLLM",
    ),
)
