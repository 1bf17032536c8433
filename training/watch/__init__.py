"""What a run is watched by: what it says of itself, samples of its own prompts, the loss on what it never trains on."""
