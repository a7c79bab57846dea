"""The 0-OS container module: Run, Inspect, Delete, over shims that outlive us.

It is given a root filesystem and a network namespace that exist already, and makes neither. It
imports nothing of `cri/`, `images/` or `network/`: what they add is turned into its terms by them.
"""
