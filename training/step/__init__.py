"""What a step is made of beside its loss: the optimiser, and a micro-batch that is replayed as one CUDA graph."""
