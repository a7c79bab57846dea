package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/exec"
)

// runServe serves scripted commands with the library that other runtimes use, until its standard
// input ends. It prints the URLs.
func runServe(args []string) error {
	newFlags("serve").Parse(args)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	config := streaming.DefaultConfig
	config.Addr = listener.Addr().String()
	server, err := streaming.NewServer(config, scripts{})
	if err != nil {
		return err
	}
	go http.Serve(listener, server)

	urls := map[string]string{}
	for name, request := range map[string]*runtimeapi.ExecRequest{
		"cat":  {ContainerId: "c", Cmd: []string{"cat"}, Stdin: true, Stdout: true},
		"bulk": {ContainerId: "c", Cmd: []string{"bulk", "3000000"}, Stdout: true},
		"exit": {ContainerId: "c", Cmd: []string{"exit", "7"}, Stdout: true},
	} {
		response, err := server.GetExec(request)
		if err != nil {
			return err
		}
		urls[name] = response.Url
	}
	forward, err := server.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		return err
	}
	urls["forward"] = forward.Url
	if err := printJSON(urls); err != nil {
		return err
	}
	io.Copy(io.Discard, os.Stdin)
	return nil
}

type scripts struct{}

func (scripts) Exec(
	_ context.Context, _ string, cmd []string, in io.Reader, out, _ io.WriteCloser, _ bool,
	_ <-chan remotecommand.TerminalSize,
) error {
	switch cmd[0] {
	case "cat":
		_, err := io.Copy(out, in)
		return err
	case "bulk":
		count, _ := strconv.ParseInt(cmd[1], 10, 64)
		_, err := io.Copy(out, newSource(count))
		return err
	}
	code, _ := strconv.Atoi(cmd[1])
	return exec.CodeExitError{Err: io.EOF, Code: code}
}

func (scripts) Attach(
	context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool,
	<-chan remotecommand.TerminalSize,
) error {
	return nil
}

func (scripts) PortForward(
	_ context.Context, _ string, _ int32, stream io.ReadWriteCloser,
) error {
	_, err := io.Copy(stream, stream)
	return err
}
