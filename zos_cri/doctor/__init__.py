"""What `zos-cri doctor` looks at: a host's fitness, and what to change where it lacks something."""
