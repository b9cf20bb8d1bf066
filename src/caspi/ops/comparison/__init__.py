"""What a comparison reads and writes."""
