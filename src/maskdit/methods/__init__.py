"""Arms of training, each in one file behind one contract: an entry of params.yaml in, network, loss, cost and sampler out."""
