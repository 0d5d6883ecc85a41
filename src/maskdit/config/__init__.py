"""params.yaml, typed: text in; frozen models, their cross-checks and the graph of a study out. Imports no other room."""
