"""A world small enough to train agents in from scratch on two CPU cores."""
