"""What an alignment says about a transcript, and what an audit may conclude from it."""
