"""Control plane and client for small-language-model rankers."""

__version__ = "0.1.0"
