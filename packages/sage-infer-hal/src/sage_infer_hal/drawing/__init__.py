"""A profile for people: as text and as SVG. Pure functions."""
