"""The ``sage`` command. Each command is a function in its own file, imported only when called."""
