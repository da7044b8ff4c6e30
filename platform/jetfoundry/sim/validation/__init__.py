"""Is the simulated physics right? Gates on known numbers, and a comparison with real jets."""
