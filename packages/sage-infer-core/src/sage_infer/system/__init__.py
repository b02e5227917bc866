"""What the operating system says of this process's machine, and what it lets the process use of it."""

from sage_infer.system.allowance import usable_cpus, usable_threads
from sage_infer.system.cgroup import Grant, granted

__all__ = ["Grant", "granted", "usable_cpus", "usable_threads"]
