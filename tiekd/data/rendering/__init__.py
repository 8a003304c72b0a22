"""The built-in street renderer: random layout, ray casting, and shading with textures and light."""
