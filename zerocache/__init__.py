"""The shared kernel of zerocache: what both halves and the app's backend use."""

__version__ = "0.1.0"
