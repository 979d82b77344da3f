"""What would happen: intentions in, plans or refusals out. Pure."""
