"""What a run is watched by: its own prompts, and the loss on what it does not train on."""
