"""What training changed inside: drift, attribution, similarity, the residual stream and its directions."""
