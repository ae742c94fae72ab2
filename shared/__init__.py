"""The library under Lienzo: pictures, networks, losses, galleries. Imports neither ``services`` nor ``training``."""
