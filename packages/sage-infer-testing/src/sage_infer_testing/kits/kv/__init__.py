"""The kits for KV: stores, endpoints, codecs and transports."""
