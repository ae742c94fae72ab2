"""The library under Lienzo: pictures, networks, losses, galleries. Imports neither ``services`` nor ``training``."""

__version__ = "0.1.0"
