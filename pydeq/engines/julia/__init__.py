"""The Julia engine. Nothing here starts Julia on import; `runtime` does when it is first asked."""
