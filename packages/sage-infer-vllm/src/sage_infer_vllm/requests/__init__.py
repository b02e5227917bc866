"""Conversion between the contract's requests and outputs and those of vLLM."""
