"""What containers and pods use: sampled in the background, answered from memory."""
