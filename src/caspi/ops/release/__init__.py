"""What is packed, published, served and remembered."""
