"""What scenes are made of: drawings, grounds, surfaces, and their names."""
