"""edgelite: the ultra-light edge agent. Imports nothing outside itself and the standard library."""

__version__ = "0.1.0"
