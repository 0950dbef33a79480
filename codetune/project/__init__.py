"""The project file: its sections, how it is read, and the presets."""
