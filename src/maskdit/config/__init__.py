"""Reads params.yaml into frozen, typed models, checks them and derives the graph. Imports no other package of maskdit."""
