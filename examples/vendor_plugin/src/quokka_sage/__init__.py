"""What the invented vendor Quokka plugs into sage-infer; ``plugin`` is the entry point."""
