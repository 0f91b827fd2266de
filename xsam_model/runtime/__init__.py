"""What the network asks of the machine: streams of a device, memory of the host."""
