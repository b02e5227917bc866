"""Convert requests of the contract to vLLM's, and outputs back."""
