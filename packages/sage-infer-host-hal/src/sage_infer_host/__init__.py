"""What the host has: processors, NUMA nodes, memory and disks, and how much of them this process may use."""
