"""What `peers.py` runs side by side, each a process of its own that is driven over a pipe."""
