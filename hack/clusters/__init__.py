"""A Kubernetes cluster on one machine: hack/cluster and tests/cluster."""
