package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

type forwardResult struct {
	Connections int      `json:"connections"`
	Sent        int64    `json:"sent"`
	Received    int64    `json:"received"`
	Wrong       []string `json:"wrong"`           // connections that weren't echoed byte for byte
	Errors      []string `json:"errors"`          // what error streams said
	First       *summary `json:"first,omitempty"` // of what the first connection received
}

// runForward forwards many connections in one session, in sequence or several at a time.
func runForward(args []string) error {
	flags := newFlags("forward")
	target := flags.String("url", "", "what the CRI server answered")
	transport := flags.String("transport", "spdy", "spdy or websocket (SPDY tunnelled)")
	ports := flags.String("ports", "7", "comma-separated; connections take turns")
	count := flags.Int("count", 1, "connections")
	parallel := flags.Int("parallel", 1, "at a time")
	size := flags.Int64("size", 1000, "bytes that each connection sends")
	echo := flags.Bool("echo", true, "the port echoes: what comes back is compared")
	listener := flags.Bool("listener", false, "through client-go's local port, as kubectl does")
	stuck := flags.Int("stuck", 0, "connections to port 11 opened first, with data nobody reads")
	flags.Parse(args)

	address, err := url.Parse(*target)
	if err != nil {
		return err
	}
	dialer, err := newDialer(*transport, address)
	if err != nil {
		return err
	}
	var remotes []string
	for _, port := range bytes.Split([]byte(*ports), []byte(",")) {
		remotes = append(remotes, string(port))
	}
	job := &forwardJob{size: *size, echo: *echo, result: forwardResult{Wrong: []string{}, Errors: []string{}}}
	if *listener {
		err = job.throughListener(dialer, remotes, *count, *parallel)
	} else {
		err = job.throughStreams(dialer, remotes, *count, *parallel, *stuck)
	}
	if err != nil {
		return err
	}
	return printJSON(job.result)
}

func newDialer(transport string, address *url.URL) (httpstream.Dialer, error) {
	config := &rest.Config{Host: address.Host}
	if transport == "websocket" {
		return portforward.NewSPDYOverWebsocketDialer(address, config)
	}
	roundTripper, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	return spdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, "POST", address), nil
}

type forwardJob struct {
	size   int64
	echo   bool
	mu     sync.Mutex
	result forwardResult
}

func (j *forwardJob) each(count, parallel int, do func(index int) error) error {
	slots := make(chan struct{}, parallel)
	errs := make(chan error, count)
	var group sync.WaitGroup
	for index := range count {
		slots <- struct{}{}
		group.Add(1)
		go func() {
			defer group.Done()
			defer func() { <-slots }()
			if err := do(index); err != nil {
				errs <- fmt.Errorf("connection %d: %w", index, err)
			}
		}()
	}
	group.Wait()
	close(errs)
	return <-errs
}

func (j *forwardJob) record(index int, sent, received *summary, errorText string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.result.Connections++
	j.result.Sent += sent.Bytes
	j.result.Received += received.Bytes
	if j.echo && sent.SHA256 != received.SHA256 {
		j.result.Wrong = append(j.result.Wrong,
			fmt.Sprintf("%d: sent %d bytes, received %d", index, sent.Bytes, received.Bytes))
	}
	if errorText != "" {
		j.result.Errors = append(j.result.Errors, errorText)
	}
	if index == 0 {
		j.result.First = received
	}
}

func (j *forwardJob) throughStreams(
	dialer httpstream.Dialer, ports []string, count, parallel, stuck int,
) error {
	connection, protocol, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return err
	}
	defer connection.Close()
	if protocol != portforward.PortForwardProtocolV1Name {
		return fmt.Errorf("negotiated %q", protocol)
	}
	for index := range stuck {
		data, _, err := openPair(connection, "11", 1_000_000+index)
		if err != nil {
			return err
		}
		if _, err := data.Write(make([]byte, 32*1024)); err != nil {
			return err
		}
	}
	return j.each(count, parallel, func(index int) error {
		data, errors, err := openPair(connection, ports[index%len(ports)], index)
		if err != nil {
			return err
		}
		defer connection.RemoveStreams(data, errors)
		source, received := newSource(j.size), newSink()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.Copy(data, source)
			data.Close()
		}()
		io.Copy(received, data)
		text, err := io.ReadAll(errors)
		if err != nil {
			return err
		}
		if j.echo || len(text) == 0 {
			<-sent
		}
		data.Reset()
		j.record(index, source.summary(), received.summary(), string(text))
		return nil
	})
}

func openPair(
	connection httpstream.Connection, port string, id int,
) (data, errors httpstream.Stream, err error) {
	headers := http.Header{}
	headers.Set(v1.StreamType, v1.StreamTypeError)
	headers.Set(v1.PortHeader, port)
	headers.Set(v1.PortForwardRequestIDHeader, strconv.Itoa(id))
	if errors, err = connection.CreateStream(headers); err != nil {
		return nil, nil, err
	}
	errors.Close()
	headers.Set(v1.StreamType, v1.StreamTypeData)
	data, err = connection.CreateStream(headers)
	return data, errors, err
}

func (j *forwardJob) throughListener(
	dialer httpstream.Dialer, ports []string, count, parallel int,
) error {
	stop, ready := make(chan struct{}), make(chan struct{})
	forwarder, err := portforward.NewOnAddresses(
		dialer, []string{"127.0.0.1"}, []string{"0:" + ports[0]}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	finished := make(chan error, 1)
	go func() { finished <- forwarder.ForwardPorts() }()
	select {
	case err := <-finished:
		return err
	case <-ready:
	}
	local, err := forwarder.GetPorts()
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", local[0].Local)
	err = j.each(count, parallel, func(index int) error {
		socket, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			return err
		}
		defer socket.Close()
		source, received := newSource(j.size), newSink()
		go func() {
			io.Copy(socket, source)
			socket.(*net.TCPConn).CloseWrite()
		}()
		if _, err := io.Copy(received, socket); err != nil {
			return err
		}
		j.record(index, source.summary(), received.summary(), "")
		return nil
	})
	close(stop)
	<-finished
	return err
}
