"""Studies that come along, found by their name."""
