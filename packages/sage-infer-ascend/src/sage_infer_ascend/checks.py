"""What ``sage infer doctor --vendor ascend`` checks: what users of this stack report, each with its source."""

from __future__ import annotations

from collections.abc import Iterator

from sage_infer.sdk.diagnosis import (
    Check,
    Finding,
    Machine,
    Part,
    VendorChecks,
    as_version,
    communication,
    device_files,
    local_address,
    mounted,
    one_platform,
    releases,
    same_release,
    sourced,
    visible_devices,
)
from sage_infer_hal.detection import count_on_bus

from sage_infer_ascend.detector import NPU_SMI
from sage_infer_ascend.needs import PLUGIN

__all__ = ["CHECKS"]

_ISSUES = "https://github.com/vllm-project/vllm-ascend/issues"
_PULLS = "https://github.com/vllm-project/vllm-ascend/pull"
_MATRIX = "https://docs.vllm.ai/projects/ascend/en/v0.23.0/community/versioning_policy.html"
_DEVICE = "/dev/davinci[0-9]*"
_DRIVER = "/usr/local/Ascend/driver"
_HDK = "25.5.1"

_PARTS = (
    Part(name="driver (HDK)", files=(f"{_DRIVER}/version.info",), expression=r"^[Vv]ersion\s*=\s*(\S+)"),
    Part(
        name="CANN",
        files=(
            "$ASCEND_HOME_PATH/*/ascend_toolkit_install.info",
            "/usr/local/Ascend/ascend-toolkit/latest/*/ascend_toolkit_install.info",
            "/usr/local/Ascend/cann/*/ascend_toolkit_install.info",
            "/usr/local/Ascend/cann-*/*/ascend_toolkit_install.info",
        ),
        expression=r"^version\s*=\s*(\S+)",
    ),
    Part(
        name="NNAL",
        files=(
            "$ATB_HOME_PATH/../../version.info",
            "/usr/local/Ascend/nnal/atb/latest/version.info",
            "/usr/local/Ascend/nnal/*/version.info",
        ),
        expression=r"^\s*Ascend-cann-atb\s*:\s*(\S+)",
    ),
    Part(name="torch", distribution="torch"),
    Part(name="torch-npu", distribution="torch-npu"),
    Part(name="triton-ascend", distribution="triton-ascend"),
    Part(name="vllm", distribution="vllm"),
    Part(name="vllm-ascend", distribution="vllm-ascend"),
    Part(name="mooncake", distribution="mooncake-transfer-engine"),
)

_ROWS = (
    {"vllm-ascend": "==0.23.*", "CANN": ">=9.0,<9.2", "torch-npu": "==2.10.*"},
    {"vllm-ascend": "==0.18.*", "CANN": ">=8.5,<9.1", "torch-npu": "==2.9.*"},
    {"vllm-ascend": "==0.13.*", "CANN": ">=8.3rc2,<9", "torch-npu": "==2.8.*"},
)
"""By the vendor's table; 0.26 is not in the table that was read."""


def _old_driver(machine: Machine) -> Iterator[Finding]:
    version = _PARTS[0].version(machine)
    parsed, least = as_version(version), as_version(_HDK)
    if parsed is not None and least is not None and parsed < least and machine.version("vllm-ascend"):
        yield Finding(
            what=f"HDK {version} is older than {_HDK}: graphs fail with 'alloc sq cq fail', and large models with "
            f"'Memory resources are exhausted' though memory is free",
            fix=f"install HDK {_HDK} or newer on the host, or capture fewer sizes: "
            f"-o 'engine_options={{compilation_config: {{cudagraph_capture_sizes: [1, 2, 4, 8]}}}}'",
            severity="warning",
        )


def _other_nnal(machine: Machine) -> Iterator[Finding]:
    versions = {part.name: part.version(machine) for part in _PARTS if part.name in ("CANN", "NNAL")}
    cann, nnal = as_version(versions["CANN"]), as_version(versions["NNAL"])
    if cann is not None and nnal is not None and cann.release[:2] != nnal.release[:2]:
        yield Finding(
            what=f"NNAL {versions['NNAL']} is not of the release of CANN {versions['CANN']}: libatb.so lacks symbols "
            f"('undefined symbol: _ZN3atb…')",
            fix=f"install NNAL {versions['CANN']}, and source /usr/local/Ascend/nnal/atb/set_env.sh",
        )


def _two_tritons(machine: Machine) -> Iterator[Finding]:
    ours, other = machine.version("triton-ascend"), machine.version("triton")
    if ours and other:
        yield Finding(
            what=f"triton {other} and triton-ascend {ours} are both installed, into the same folder: kernels are "
            f"missing or imports fail",
            fix=f"pip uninstall -y triton triton-ascend && pip install --no-deps triton-ascend=={ours}",
        )


def _no_hccn_conf(machine: Machine) -> Iterator[Finding]:
    if not machine.exists(_DEVICE) or machine.exists("/etc/hccn.conf"):
        return
    used = [
        name
        for name in ("MOONCAKE_CONFIG_PATH", "HCCL_IF_IP", "RANK_TABLE_FILE", "HCCL_INTRA_ROCE_ENABLE")
        if machine.variable(name)
    ]
    hint = f"and {', '.join(used)} is set" if used else "which several machines, and prefill/decode, need"
    yield Finding(
        what=f"/etc/hccn.conf does not exist, {hint}: KV that Mooncake moves is wrong, without an error",
        fix=f"docker run -v /etc/hccn.conf:/etc/hccn.conf -v {_DRIVER}/tools/hccn_tool:{_DRIVER}/tools/hccn_tool …",
        severity="error" if used else "note",
    )


def _allocator(machine: Machine) -> Iterator[Finding]:
    value = machine.variable("PYTORCH_NPU_ALLOC_CONF")
    if "expandable_segments:True" not in value:
        return
    options = [option.strip() for option in value.split(",")]
    clash = [o for o in options if o.startswith(("max_split_size_mb", "garbage_collection_threshold"))]
    if clash:
        yield Finding(
            what=f"PYTORCH_NPU_ALLOC_CONF={value}: {clash[0].partition(':')[0]} and expandable_segments cannot be "
            f"combined",
            fix="export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
        )
    else:
        yield Finding(
            what=f"PYTORCH_NPU_ALLOC_CONF={value}: sleep mode does not work with expandable segments",
            fix="export PYTORCH_NPU_ALLOC_CONF=expandable_segments:False   (if the model is to sleep)",
            severity="note",
        )


def _hash_seed(machine: Machine) -> Iterator[Finding]:
    if machine.variable("MOONCAKE_CONFIG_PATH") and machine.variable("PYTHONHASHSEED") in ("", "random"):
        yield Finding(
            what="MOONCAKE_CONFIG_PATH is set, but PYTHONHASHSEED is not: each process hashes prefixes "
            "differently, so that stored KV is never found again",
            fix="export PYTHONHASHSEED=0   (the same on every machine)",
            severity="warning",
        )


def _transport_library(machine: Machine) -> Iterator[Finding]:
    path = "/usr/local/lib/ascend_transport.so"
    folders = [folder.rstrip("/") for folder in machine.variable("LD_LIBRARY_PATH").split(":")]
    if machine.exists(path) and "/usr/local/lib" not in folders:
        yield Finding(
            what=f"{path} is not on LD_LIBRARY_PATH: the Mooncake connector fails with "
            "'ascend_transport.so: cannot open shared object file'",
            fix="export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/local/lib",
            severity="warning",
        )


CHECKS = VendorChecks(
    parts=_PARTS,
    nodes=("/dev/davinci*", "/dev/devmm_svm", "/dev/hisi_hdc"),
    variables=(
        "ACL_*", "ASCEND_*", "ATB_*", "CANN_*", "HCCL_*", "MOONCAKE_CONFIG_PATH", "RANK_TABLE_FILE", "SOC_VERSION",
        "TASK_QUEUE_ENABLE",
    ),
    checks=(
        device_files(
            _DEVICE,
            companions=("/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
            on_bus=count_on_bus(NPU_SMI),
            docker="--device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm "
            "--device /dev/hisi_hdc",
            sources=(f"{_ISSUES}/1440", f"{_ISSUES}/130", f"{_ISSUES}/2698"),
        ),
        mounted(
            "driver libraries",
            files=(
                f"{_DRIVER}/lib64/driver/libascend_hal.so",
                f"{_DRIVER}/lib64/*/libascend_hal.so",
                f"{_DRIVER}/lib64/libascend_hal.so",
            ),
            device=_DEVICE,
            what="importing torch_npu fails with 'libascend_hal.so: cannot open shared object file'",
            fix=f"docker run -v {_DRIVER}/lib64:{_DRIVER}/lib64 -v {_DRIVER}/version.info:{_DRIVER}/version.info "
            f"-v /usr/local/dcmi:/usr/local/dcmi …",
            sources=(f"{_ISSUES}/1440",),
        ),
        sourced(
            "CANN environment",
            scripts=("/usr/local/Ascend/ascend-toolkit/set_env.sh", "/usr/local/Ascend/cann*/set_env.sh"),
            variables=("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"),
            what="importing torch_npu fails with 'libhccl.so: cannot open shared object file', which vLLM reports as "
            "'Failed to infer device type'",
            sources=(f"{_ISSUES}/262", f"{_ISSUES}/540"),
        ),
        sourced(
            "NNAL environment",
            scripts=("/usr/local/Ascend/nnal/atb/set_env.sh",),
            variables=("ATB_HOME_PATH",),
            what="'libatb.so: cannot open shared object file' when the model is loaded",
            sources=(f"{_ISSUES}/152", f"{_ISSUES}/10525", f"{_ISSUES}/2727"),
        ),
        releases(
            _PARTS,
            anchor="vllm-ascend",
            rows=_ROWS,
            sources=(_MATRIX, f"{_ISSUES}/3349", f"{_ISSUES}/6336", f"{_ISSUES}/380"),
            fixes={"CANN": f"install CANN {{wanted}}, or the release of vllm-ascend for it: {_MATRIX}"},
        ),
        Check(name="NNAL", sources=(f"{_ISSUES}/750", f"{_ISSUES}/117"), find=_other_nnal),
        same_release("torch", "torch-npu", sources=(f"{_ISSUES}/5710", f"{_ISSUES}/7587", f"{_ISSUES}/1796")),
        Check(name="driver", sources=(f"{_PULLS}/10555", f"{_ISSUES}/9005"), find=_old_driver),
        Check(name="triton", sources=(f"{_ISSUES}/7359", f"{_PULLS}/7790"), find=_two_tritons),
        one_platform(PLUGIN, sources=("https://github.com/vllm-project/vllm/issues/48277", f"{_ISSUES}/262")),
        visible_devices(
            "ASCEND_RT_VISIBLE_DEVICES",
            _DEVICE,
            sources=(
                f"{_ISSUES}/449",
                f"{_PULLS}/10227",
                "https://github.com/gpustack/gpustack/issues/3352",
            ),
        ),
        Check(name="hccn.conf", sources=(f"{_ISSUES}/7711",), find=_no_hccn_conf),
        Check(name="KV hashes", sources=(f"{_PULLS}/5398", f"{_ISSUES}/12002"), find=_hash_seed),
        Check(name="Mooncake library", sources=(f"{_ISSUES}/6949",), find=_transport_library),
        Check(
            name="allocator",
            sources=(f"{_PULLS}/5855", "https://github.com/modelscope/ms-swift/issues/6636", f"{_PULLS}/9242"),
            find=_allocator,
        ),
        local_address("HCCL_IF_IP", sources=(f"{_ISSUES}/5461",)),
        *communication("HCCL"),
    ),
)  # fmt: skip
