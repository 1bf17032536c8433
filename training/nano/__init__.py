"""The bundled nano family: what it is trained on, and the small networks around its transformer."""
