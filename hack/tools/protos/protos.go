//go:build tools

// Package protos keeps the modules below in go.mod: nothing of them is built.
package protos

import (
	_ "github.com/containerd/cgroups/v3/cgroup1/stats"
	_ "github.com/containerd/containerd/api/runtime/task/v3"
	_ "github.com/containerd/nri/pkg/api"
	_ "github.com/containerd/ttrpc"
	_ "google.golang.org/genproto/googleapis/rpc/status"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1"
)
