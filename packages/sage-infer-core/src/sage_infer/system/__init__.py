"""Facts from the operating system: the machine, and the resources that this process may use."""

from sage_infer.system.allowance import usable_cpus, usable_threads
from sage_infer.system.cgroup import Grant, granted

__all__ = ["Grant", "granted", "usable_cpus", "usable_threads"]
