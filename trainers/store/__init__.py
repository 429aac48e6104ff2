"""What lies on the disk: arrays, checkpoints, run folders, and the reader of them. No runner is imported."""
