"""The scaffold: a complete wheel for a new plug-in, from the templates beside this file."""

from sage_infer_testing.scaffold.wheel import KINDS, NewWheel, plan_wheel, write_wheel

__all__ = ["KINDS", "NewWheel", "plan_wheel", "write_wheel"]
