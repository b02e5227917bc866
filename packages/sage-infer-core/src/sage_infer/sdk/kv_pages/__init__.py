"""Parts of the ``KVBroker``: its store, pages, and the line of requests."""
