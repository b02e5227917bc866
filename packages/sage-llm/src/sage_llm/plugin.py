"""Plug-in of this wheel."""

SAGE_INFER_CONTRACT = "1.0"
