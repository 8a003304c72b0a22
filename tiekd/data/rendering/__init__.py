"""The parts of the built-in street renderer: casting, objects, layout, light, ground, materials."""
