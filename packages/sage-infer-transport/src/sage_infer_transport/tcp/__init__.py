"""KV over TCP: the endpoint that serves rooms, and the transport that reads and writes them."""
