"""Nearest-neighbour indices behind one protocol."""
