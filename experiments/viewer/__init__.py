"""The viewer: runs, curves and every logged trajectory, live in a browser."""
