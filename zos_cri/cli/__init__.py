"""The command `zos-cri`."""
