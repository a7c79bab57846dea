"""Protocol cores: bytes in, events and bytes out. No sockets, no event loop, no clock, no log."""
