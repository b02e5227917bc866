"""What runs in the process with NIXL: ``python -m sage_infer_nixl.agent [DESCRIPTOR SIZE]``."""
