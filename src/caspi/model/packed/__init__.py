"""The packed step: clips one after the other in a single sequence, without padding between them."""
