"""What runs inside worker processes: env workers with their groups, and model workers."""
