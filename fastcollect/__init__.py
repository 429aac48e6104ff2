"""Fast experience collection for CPU-simulated environments."""
