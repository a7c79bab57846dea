"""Pod networks: CNI plugins run by exec, with configurations from net.d and results on disk."""
