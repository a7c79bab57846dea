// streamingpeer is the other side in tests of the streaming server: the clients that Kubernetes
// uses (client-go), and the server that other runtimes use (k8s.io/cri-streaming). It prints one
// JSON object for each run.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
)

func main() {
	if len(os.Args) < 2 {
		fail(fmt.Errorf("usage: streamingpeer process|forward|serve [flags]"))
	}
	commands := map[string]func([]string) error{
		"process": runProcess,
		"forward": runForward,
		"serve":   runServe,
	}
	command, ok := commands[os.Args[1]]
	if !ok {
		fail(fmt.Errorf("no command %q", os.Args[1]))
	}
	if err := command(os.Args[2:]); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(2)
}

func newFlags(name string) *flag.FlagSet {
	return flag.NewFlagSet(name, flag.ExitOnError)
}

func printJSON(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}

// summary is what a test wants to know of a stream of bytes.
type summary struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	Head   string `json:"head"`
}

// sink swallows bytes and sums them up, optionally no faster than a rate.
type sink struct {
	mu    sync.Mutex
	hash  io.Writer
	sum   func() []byte
	count int64
	head  []byte
	pace  func(int)
	seen  chan struct{} // closed at the first byte
	once  sync.Once
}

func newSink() *sink {
	hash := sha256.New()
	return &sink{
		hash: hash,
		sum:  func() []byte { return hash.Sum(nil) },
		seen: make(chan struct{}),
	}
}

func (s *sink) Write(data []byte) (int, error) {
	if s.pace != nil {
		s.pace(len(data))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hash.Write(data)
	s.count += int64(len(data))
	if room := 200 - len(s.head); room > 0 {
		s.head = append(s.head, data[:min(room, len(data))]...)
	}
	s.once.Do(func() { close(s.seen) })
	return len(data), nil
}

func (s *sink) summary() *summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &summary{s.count, hex.EncodeToString(s.sum()), string(s.head)}
}

// source gives count bytes that differ from place to place. A summary may be asked for while
// somebody still reads.
type source struct {
	mu       sync.Mutex
	count    int64
	position int64
	hash     io.Writer
	sum      func() []byte
}

func newSource(count int64) *source {
	hash := sha256.New()
	return &source{count: count, hash: hash, sum: func() []byte { return hash.Sum(nil) }}
}

func (s *source) Read(buffer []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.position >= s.count {
		return 0, io.EOF
	}
	buffer = buffer[:min(int64(len(buffer)), s.count-s.position)]
	for i := range buffer {
		at := s.position + int64(i)
		buffer[i] = byte(at) ^ byte(at>>8) ^ byte(at>>16)
	}
	s.hash.Write(buffer)
	s.position += int64(len(buffer))
	return len(buffer), nil
}

func (s *source) summary() *summary {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &summary{s.position, hex.EncodeToString(s.sum()), ""}
}
