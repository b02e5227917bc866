"""The configuration file as it is read. ``sage_infer.config`` is the front door."""
