"""Containers' standard streams: FIFOs, log files, and the logger process that joins the two."""
