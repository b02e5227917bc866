"""Small correct implementations of every contract; the kits must pass on them."""
