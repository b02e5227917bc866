"""What the backend requires of a machine and where to look for it. Data only: the plug-in module reads it."""

from sage_infer import Need

__all__ = ["ENGINE", "NEEDS", "PLUGIN", "PLUGIN_DISTRIBUTIONS"]

ENGINE = {"vllm": ">=0.18,<0.27"}
"""vLLM, by distribution. ``vllm-ascend`` follows its version numbers: both must be of the same release."""

PLUGIN = "ascend"
PLUGIN_DISTRIBUTIONS = {"vllm-ascend": ">=0.18,<0.27"}
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
        what="torch_npu",
        distributions={"torch-npu": ">=2.9,<2.11"},
        install="pip install 'torch-npu>=2.9,<2.11' (vllm-ascend requires the right one)",
    ),
    Need(what="vLLM", distributions=ENGINE, install="pip install 'vllm>=0.18,<0.27'"),
    Need(
        what="vLLM platform plug-in vllm-ascend",
        distributions=PLUGIN_DISTRIBUTIONS,
        entry_point=f"vllm.platform_plugins:{PLUGIN}",
        install="pip install 'vllm-ascend>=0.18,<0.27', the release of the installed vLLM",
    ),
)
