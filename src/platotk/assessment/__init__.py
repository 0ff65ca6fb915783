"""Assessment: what a trained policy does, measured episode by episode."""
