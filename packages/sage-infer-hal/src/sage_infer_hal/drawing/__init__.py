"""A profile as text and as SVG. Pure functions."""
