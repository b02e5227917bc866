"""A detector of two devices, which can measure and read its own tool's output; and one that fails."""

from attrs import evolve
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, Figure, HardwareProfile, LinkProfile, MemoryTierSpec

TABLE = Figure(value=100.0, source="toy table", confidence="low")


def machine(count, source):
    devices = [
        AcceleratorDescriptor(
            hardware_backend="npu",
            vendor="Toy",
            model="T1",
            index=i,
            numa_node=0,
            memory_bytes=1 << 34,
            peak_tflops={"fp16": TABLE},
        )
        for i in range(count)
    ]
    links = [
        LinkProfile(source=f"npu:{a}", target=f"npu:{b}", kind="other", vendor_code="TOY", nominal_gbs=TABLE)
        for a in range(count)
        for b in range(count)
        if a != b
    ]
    tiers = [MemoryTierSpec(tier="hbm", name=f"npu:{i}", capacity_bytes=1 << 34) for i in range(count)]
    return HardwareProfile(accelerators=devices, links=links, memory_tiers=tiers, sources=[source])


class ToyDetector:
    def detect(self):
        return machine(2, "toy driver 1.0")

    def measure(self, profile, progress):
        progress("measuring npu", 1.0)
        figure = Figure(value=80.0, source="measured: toy")
        return evolve(
            profile, memory_tiers=[evolve(t, measured_read_gbs=figure) for t in profile.memory_tiers]
        )


class Failing:
    def detect(self):
        raise ToolOutputError("toy-smi 2.0, line 3: expected a device, got 'oops'")


def read(text, *, name):
    if not text.startswith("toy-smi "):
        raise ToolOutputError(f"{name}: line 1 is no output of toy-smi")
    return machine(int(text.split()[1]), f"toy-smi in {name}")
