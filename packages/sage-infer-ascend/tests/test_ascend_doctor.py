"""``sage infer doctor --vendor ascend`` on machines with the symptoms that users report."""

from __future__ import annotations

from pathlib import Path

import pytest
from sage_infer_ascend.needs import NEEDS
from sage_infer_testing.doctor import Symptom, WorkingMachine, assert_diagnosed, assert_healthy

ISSUES = "https://github.com/vllm-project/vllm-ascend/issues"
PULLS = "https://github.com/vllm-project/vllm-ascend/pull"
INFO = "/usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info"
VERSION_INFO = "/usr/local/Ascend/driver/version.info"
ATB_INFO = "/usr/local/Ascend/nnal/atb/latest/version.info"
SHM = "1 0 0:50 / /dev/shm rw,nosuid,nodev,noexec,relatime - tmpfs shm rw,size={size}\n"
LIMITS = "Limit                     Soft Limit           Hard Limit\nMax locked memory         {kib}  bytes\n"
ROUTES = (
    "Local:\n  +-- 0.0.0.0/0 3 0 5\n        |-- 127.0.0.1\n           /32 host LOCAL\n"
    "        |-- 10.0.0.5\n           /32 host LOCAL\n"
)
PCI = "/sys/bus/pci/devices/0000:c1:00.0"

MACHINE = WorkingMachine(
    vendor="ascend",
    needs=NEEDS,
    versions={
        "torch": "2.9.0", "torch-npu": "2.9.0.post1", "triton-ascend": "3.2.0", "vllm": "0.18.0",
        "vllm-ascend": "0.18.0",
    },
    device_nodes=("/dev/davinci[0-9]*", "/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"),
    files={
        "/dev/davinci1": "",
        VERSION_INFO: "Version=25.5.1\nascendhal_version=7.35.23\n",
        INFO: "package_name=Ascend-cann-toolkit\nversion=8.5.1\narch=aarch64\n",
        ATB_INFO: "    Ascend-cann-atb : 8.5.1\n    Ascend-cann-atb Version : 8.5.1.B080\n",
        "/usr/local/Ascend/ascend-toolkit/set_env.sh": "export ASCEND_HOME_PATH=…\n",
        "/usr/local/Ascend/driver/lib64/driver/libascend_hal.so": "",
        "/etc/hccn.conf": "address_0=192.0.2.7\n",
        "/sys/class/net/eth0/mtu": "1500\n",
        "/sys/class/net/lo/mtu": "65536\n",
        "/proc/net/fib_trie": ROUTES,
        "/proc/self/mountinfo": SHM.format(size="16777216k"),
        "/proc/self/limits": LIMITS.format(kib="unlimited            unlimited"),
        f"{PCI}/vendor": "0x19e5\n", f"{PCI}/device": "0xd802\n", f"{PCI}/class": "0x120000\n",
    },
    environment={
        "ASCEND_HOME_PATH": "/usr/local/Ascend/ascend-toolkit/latest",
        "ATB_HOME_PATH": "/usr/local/Ascend/nnal/atb/latest/atb/cxx_abi_1",
        "ASCEND_RT_VISIBLE_DEVICES": "0,1", "HCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0",
        "HCCL_IF_IP": "10.0.0.5",
    },
)  # fmt: skip

SYMPTOMS = {
    "engine and plug-in of two releases": Symptom(
        report=f"{ISSUES}/7488", versions={"vllm": "0.13.0"},
        says="vllm 0.13.0 and vllm-ascend 0.18.0 do not work together", fix="the release of the installed vLLM",
    ),
    "pip replaced torch": Symptom(
        report=f"{ISSUES}/7587", versions={"torch": "2.10.0"},
        says="torch 2.10.0 and torch-npu 2.9.0.post1 are of different releases", fix="pip install 'torch==2.9.0'",
    ),
    "torch_npu of another release": Symptom(
        report=f"{ISSUES}/3349", versions={"torch": "2.8.0", "torch-npu": "2.8.0"},
        says="torch-npu 2.8.0 does not go with vllm-ascend 0.18.0, which needs ==2.9.*",
        fix="pip install 'torch-npu==2.9.*'",
    ),
    "CANN too old for the plug-in": Symptom(
        report=f"{ISSUES}/380", files={INFO: "version=8.3.RC2\n", ATB_INFO: " Ascend-cann-atb : 8.3.RC2\n"},
        says="CANN 8.3.RC2 does not go with vllm-ascend 0.18.0, which needs >=8.5,<9.1", fix="install CANN >=8.5,<9.1",
    ),
    "NNAL of another release than CANN": Symptom(
        report=f"{ISSUES}/750", files={ATB_INFO: " Ascend-cann-atb : 8.1.RC1\n"},
        says="NNAL 8.1.RC1 is not of the release of CANN 8.5.1", fix="install NNAL 8.5.1",
    ),
    "driver too old": Symptom(
        report=f"{ISSUES}/9005", files={VERSION_INFO: "Version=23.0.7\n"}, severity="warning",
        says="HDK 23.0.7 is older than 25.5.1: graphs fail with 'alloc sq cq fail'", fix="install HDK 25.5.1 or newer",
    ),
    "set_env.sh not sourced": Symptom(
        report=f"{ISSUES}/262", environment={"ASCEND_HOME_PATH": None},
        says="'libhccl.so: cannot open shared object file'", fix="source /usr/local/Ascend/ascend-toolkit/set_env.sh",
    ),
    "NNAL not sourced": Symptom(
        report=f"{ISSUES}/10525", environment={"ATB_HOME_PATH": None},
        says="libatb.so: cannot open shared object file", fix="source /usr/local/Ascend/nnal/atb/set_env.sh",
    ),
    "NNAL not installed": Symptom(
        report=f"{ISSUES}/2727", lacks=("/usr/local/Ascend/nnal",), environment={"ATB_HOME_PATH": None},
        says="none of /usr/local/Ascend/nnal/atb/set_env.sh", fix="install NNAL of CANN's release",
    ),
    "a device name misspelt in docker run": Symptom(
        report=f"{ISSUES}/1440", lacks=("/dev/davinci_manager",),
        says="without /dev/davinci_manager", fix="--device /dev/davinci_manager",
    ),
    "no device passed on": Symptom(
        report=f"{ISSUES}/130", lacks=("/dev/davinci0", "/dev/davinci1"),
        environment={"ASCEND_RT_VISIBLE_DEVICES": None},
        says="1 devices are on the PCI bus, but /dev/davinci[0-9]* does not exist",
        fix="docker run --device /dev/davinci0",
    ),
    "driver libraries not mounted": Symptom(
        report=f"{ISSUES}/1440", lacks=("/usr/local/Ascend/driver/lib64",),
        says="libascend_hal.so: cannot open shared object file", fix="-v /usr/local/Ascend/driver/lib64",
    ),
    "devices by the numbers of the host": Symptom(
        report=f"{ISSUES}/449", environment={"ASCEND_RT_VISIBLE_DEVICES": "4,5"},
        says="ASCEND_RT_VISIBLE_DEVICES=4,5: 4, 5 not here: the 2 devices are numbered 0 to 1, also in a container",
        fix="export ASCEND_RT_VISIBLE_DEVICES=0,1",
    ),
    "one device of the host's numbers fits": Symptom(
        report=f"{PULLS}/10227", environment={"ASCEND_RT_VISIBLE_DEVICES": "0,3"},
        says="3 not here", fix="export ASCEND_RT_VISIBLE_DEVICES=0",
    ),
    "two tritons": Symptom(
        report=f"{ISSUES}/7359", versions={"triton": "3.6.0"},
        says="triton 3.6.0 and triton-ascend 3.2.0 are both installed",
        fix="pip uninstall -y triton triton-ascend && pip install --no-deps triton-ascend==3.2.0",
    ),
    "hccn.conf not mounted": Symptom(
        report=f"{ISSUES}/7711", lacks=("/etc/hccn.conf",),
        says="/etc/hccn.conf does not exist, and HCCL_IF_IP is set: KV that Mooncake moves is wrong, without an error",
        fix="docker run -v /etc/hccn.conf:/etc/hccn.conf",
    ),
    "hccn.conf missing on one machine": Symptom(
        report=f"{ISSUES}/7711", lacks=("/etc/hccn.conf",), environment={"HCCL_IF_IP": None}, severity="note",
        says="which several machines, and prefill/decode, need", fix="/etc/hccn.conf",
    ),
    "stored KV never found again": Symptom(
        report=f"{PULLS}/5398", environment={"MOONCAKE_CONFIG_PATH": "/etc/mooncake.json"}, severity="warning",
        says="PYTHONHASHSEED is not", fix="export PYTHONHASHSEED=0",
    ),
    "Mooncake's library not found": Symptom(
        report=f"{ISSUES}/6949", files={"/usr/local/lib/ascend_transport.so": ""}, severity="warning",
        says="ascend_transport.so: cannot open shared object file",
        fix="export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:/usr/local/lib",
    ),
    "settings of the allocator that exclude each other": Symptom(
        report=f"{PULLS}/5855",
        environment={"PYTORCH_NPU_ALLOC_CONF": "max_split_size_mb:256,expandable_segments:True"},
        says="max_split_size_mb and expandable_segments cannot be combined",
        fix="export PYTORCH_NPU_ALLOC_CONF=expandable_segments:True",
    ),
    "sleep mode with expandable segments": Symptom(
        report="https://github.com/modelscope/ms-swift/issues/6636", severity="note",
        environment={"PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True"},
        says="sleep mode does not work with expandable segments", fix="expandable_segments:False",
    ),
    "the platform is left out": Symptom(
        report="https://github.com/vllm-project/vllm/issues/48277",
        environment={"VLLM_PLUGINS": "lora_filesystem_resolver"},
        says="VLLM_PLUGINS=lora_filesystem_resolver leaves out ascend",
        fix="export VLLM_PLUGINS=lora_filesystem_resolver,ascend",
    ),
    "two platforms": Symptom(
        report="https://github.com/flagos-ai/vllm-plugin-FL/issues/159", platforms={"fl": "vllm-plugin-fl"},
        says="vLLM can use one platform plug-in, and fl (vllm-plugin-fl) is installed as well",
        fix="pip uninstall vllm-plugin-fl",
    ),
    "an address in place of an interface": Symptom(
        report="https://github.com/AMD-AGI/Primus/pull/1063", environment={"GLOO_SOCKET_IFNAME": "10.0.0.5"},
        says="GLOO_SOCKET_IFNAME=10.0.0.5 is an address; it takes the name of an interface",
        fix="export GLOO_SOCKET_IFNAME=eth0",
    ),
    "another machine's interface": Symptom(
        report="https://github.com/vllm-project/vllm/issues/7074", environment={"HCCL_SOCKET_IFNAME": "enp61s0f0"},
        says="there is no interface enp61s0f0, only eth0, lo", fix="export HCCL_SOCKET_IFNAME=eth0",
    ),
    "loopback between machines": Symptom(
        report="https://github.com/NVIDIA/nccl/issues/286", environment={"GLOO_SOCKET_IFNAME": "lo"},
        severity="warning",
        says="other machines cannot be reached through lo", fix="export GLOO_SOCKET_IFNAME=eth0",
    ),
    "another machine's address": Symptom(
        report=f"{ISSUES}/5461", environment={"HCCL_IF_IP": "10.0.0.6"},
        says="HCCL_IF_IP=10.0.0.6 is no address of this machine, whose addresses are 10.0.0.5",
        fix="export HCCL_IF_IP=10.0.0.5",
    ),
    "a name in place of an address": Symptom(
        report=f"{ISSUES}/5461", environment={"HCCL_IF_IP": "eth0"}, says="HCCL_IF_IP=eth0 is no address",
        fix="export HCCL_IF_IP=10.0.0.5",
    ),
    "Docker's small shared memory": Symptom(
        report="https://github.com/vllm-project/vllm/issues/789", severity="warning",
        files={"/proc/self/mountinfo": SHM.format(size="65536k")},
        says="/dev/shm has 64 MiB", fix="docker run --shm-size=16g",
    ),
    "RDMA adapters not passed on": Symptom(
        report="https://github.com/vllm-project/vllm/pull/42075", severity="warning",
        files={"/sys/class/infiniband/mlx5_0/node_type": "1: CA\n"},
        says="RDMA adapters (mlx5_0), but /dev/infiniband does not exist", fix="docker run --device /dev/infiniband",
    ),
    "little locked memory": Symptom(
        report="https://github.com/kvcache-ai/Mooncake/issues/1382", severity="warning",
        files={
            "/dev/infiniband/uverbs0": "", "/proc/self/limits": LIMITS.format(kib="65536                65536"),
        },
        says="at most 64 KiB may be locked", fix="docker run --ulimit memlock=-1",
    ),
}  # fmt: skip


def test_a_machine_that_works_has_no_problems(tmp_path: Path) -> None:
    assert_healthy(tmp_path, MACHINE)


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_symptom_is_one_line_with_its_fix(name: str, tmp_path: Path) -> None:
    assert SYMPTOMS[name].report.startswith("https://github.com/")
    assert_diagnosed(tmp_path, MACHINE, SYMPTOMS[name])
