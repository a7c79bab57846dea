//go:build tools

// Package cri names what critest is built from. Its own package holds a test
// only, which no tool line can name, so `go mod tidy` would drop its modules.
package cri

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
