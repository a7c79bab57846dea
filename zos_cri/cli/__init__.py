"""The command `zos-cri`."""

import os

# gRPC looks at these when it is imported, which the modules beside this one do.
#
# Its fork handlers cost milliseconds at each spawn; nothing here forks without exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A server's completion queue reads the connections by itself: two threads fewer stand between a
# request's arrival and us, which is a fifth of what a small call takes.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
