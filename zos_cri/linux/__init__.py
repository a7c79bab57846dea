"""The kernel's side: mounts, namespaces, cgroups, processes. The only ctypes and raw syscalls."""
