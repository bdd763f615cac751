"""The command ``pydeq``."""
