"""Takes the place of NIXL in the processes of ``test_nixl_broken``: see ``_api``."""
