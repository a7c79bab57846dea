"""From configs to OCI runtime specs: pure functions, nothing here asks the host anything."""
