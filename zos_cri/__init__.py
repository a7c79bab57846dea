"""A Kubernetes CRI v1 server over the 0-OS container module."""

__version__ = "0.1.0"
