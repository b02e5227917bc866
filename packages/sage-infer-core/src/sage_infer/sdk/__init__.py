"""Public building blocks for plug-ins. Import a module of it by name; this file imports nothing."""
