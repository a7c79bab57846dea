"""The only place that builds and wires objects; `server` has the order of start and stop."""
