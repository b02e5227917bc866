"""From requests of the contract to vLLM's, and its outputs back."""
