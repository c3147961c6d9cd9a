"""What a plan costs on this machine: latency, work and memory of every operation and phase (`edge-runtime profile`)."""
