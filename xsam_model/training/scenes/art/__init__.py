"""The material of scenes: drawings, background pictures, surfaces, and their names."""
