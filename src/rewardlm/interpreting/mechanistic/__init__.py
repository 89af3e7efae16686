"""What the residual stream of a model holds, and what an adapter does to it. ``examination`` is the flow."""
