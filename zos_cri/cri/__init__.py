"""CRI v1 on top of the module: one file an RPC, each a function of the services and the request."""
