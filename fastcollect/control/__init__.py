"""What runs in the caller's process: the collector, its serial twin, launcher and supervisor of workers."""
