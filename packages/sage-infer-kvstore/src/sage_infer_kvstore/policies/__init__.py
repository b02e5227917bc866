"""Which blocks leave a store first: pure objects, without threads and clocks."""
