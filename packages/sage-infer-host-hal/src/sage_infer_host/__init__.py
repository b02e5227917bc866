"""Processors, NUMA nodes, memory and disks of the host, and the share that this process may use."""
