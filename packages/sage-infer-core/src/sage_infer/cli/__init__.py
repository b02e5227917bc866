"""The ``sage`` command. A command is a function in a file of its own; nothing is imported before it is called."""
