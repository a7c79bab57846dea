"""Images: references, registries, content by digest, unpacked layers, containers' root filesystems.

The server itself holds the catalogue and little else (`store.ImageStore`). What reads untrusted
bytes or takes long (registries, archives, flists) runs in `worker`, a process that ends with its
job, and so gives its memory back and takes its crashes with it.
"""
