package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

type processResult struct {
	Stdin    *summary `json:"stdin,omitempty"`
	Stdout   *summary `json:"stdout,omitempty"`
	Stderr   *summary `json:"stderr,omitempty"`
	ExitCode int      `json:"exit_code"`
	Error    string   `json:"error,omitempty"`
}

// sizeQueue gives the sizes it was made with, then none until the end.
type sizeQueue struct {
	sizes []remotecommand.TerminalSize
	done  chan struct{}
}

func (q *sizeQueue) Next() *remotecommand.TerminalSize {
	if len(q.sizes) == 0 {
		<-q.done
		return nil
	}
	size := q.sizes[0]
	q.sizes = q.sizes[1:]
	// A terminal's sizes come one by one; the server may drop all but the newest.
	time.Sleep(50 * time.Millisecond)
	return &size
}

// runProcess is an exec or attach client.
func runProcess(args []string) error {
	flags := newFlags("process")
	target := flags.String("url", "", "what the CRI server answered")
	transport := flags.String("transport", "spdy", "spdy or websocket")
	protocols := flags.String("protocols", "", "subprotocols to offer, instead of all")
	stdinBytes := flags.Int64("stdin", -1, "bytes to send; -1 is no stdin, -2 an open one without data")
	hasStdout := flags.Bool("stdout", true, "")
	hasStderr := flags.Bool("stderr", false, "")
	tty := flags.Bool("tty", false, "")
	sizes := flags.String("sizes", "", "80x24,100x30")
	slow := flags.Int("slow", 0, "bytes a second to take of each output; 0 is all")
	vanish := flags.Bool("vanish", false, "break off after the first byte of stdout")
	insecure := flags.Bool("insecure", false, "take any certificate")
	flags.Parse(args)

	address, err := url.Parse(*target)
	if err != nil {
		return err
	}
	config := &rest.Config{Host: address.Host}
	config.TLSClientConfig.Insecure = *insecure
	executor, err := newExecutor(config, *transport, address, *protocols)
	if err != nil {
		return err
	}

	stdout, stderr := newSink(), newSink()
	if *slow > 0 {
		pace := func(n int) { time.Sleep(time.Duration(n) * time.Second / time.Duration(*slow)) }
		stdout.pace, stderr.pace = pace, pace
	}
	options := remotecommand.StreamOptions{Tty: *tty}
	var stdin *source
	if *stdinBytes >= 0 {
		stdin = newSource(*stdinBytes)
		options.Stdin = stdin
	} else if *stdinBytes == -2 {
		reader, _ := io.Pipe()
		options.Stdin = reader
	}
	if *hasStdout {
		options.Stdout = stdout
	}
	if *hasStderr {
		options.Stderr = stderr
	}
	if *sizes != "" {
		queue := &sizeQueue{done: make(chan struct{})}
		for _, text := range strings.Split(*sizes, ",") {
			var size remotecommand.TerminalSize
			if _, err := fmt.Sscanf(text, "%dx%d", &size.Width, &size.Height); err != nil {
				return err
			}
			queue.sizes = append(queue.sizes, size)
		}
		options.TerminalSizeQueue = queue
	}

	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if *vanish {
		go func() {
			<-stdout.seen
			cancel()
		}()
	}
	result := processResult{}
	if err := executor.StreamWithContext(ctx, options); err != nil {
		var exit utilexec.CodeExitError
		if errors.As(err, &exit) {
			result.ExitCode = exit.Code
		} else {
			result.ExitCode = -1
		}
		result.Error = err.Error()
	}
	if stdin != nil {
		result.Stdin = stdin.summary()
	}
	result.Stdout, result.Stderr = stdout.summary(), stderr.summary()
	return printJSON(result)
}

func newExecutor(
	config *rest.Config, transport string, address *url.URL, protocols string,
) (remotecommand.Executor, error) {
	var offered []string
	if protocols != "" {
		offered = strings.Split(protocols, ",")
	}
	if transport == "websocket" {
		if offered == nil {
			return remotecommand.NewWebSocketExecutor(config, "GET", address.String())
		}
		return remotecommand.NewWebSocketExecutorForProtocols(
			config, "GET", address.String(), offered...)
	}
	if offered == nil {
		return remotecommand.NewSPDYExecutor(config, "POST", address)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewSPDYExecutorForProtocols(
		roundTripper, upgrader, "POST", address, offered...)
}
