"""What the terminal commands print: trees, lists, costs and plans, for people and as JSON."""
