"""Cases to seconds: speed and memory, measured in pairs."""
