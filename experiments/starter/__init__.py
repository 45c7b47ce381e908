"""What `rapo init` writes: the beginning of a user's own experiment."""
