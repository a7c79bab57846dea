"""Checkpoints of containers: CRIU's images and what belongs to them, in one archive."""
