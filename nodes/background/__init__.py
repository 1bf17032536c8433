"""Trainings as background jobs of a ComfyUI server: its queue, what nodes and routes ask of it, what came of it."""
