"""containerd's shims, driven without containerd: launch, ttrpc, tasks, events, recovery."""
